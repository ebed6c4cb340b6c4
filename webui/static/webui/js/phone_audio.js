// A telephone's sound: what is heard goes to the loudspeaker, what is said comes from the microphone, both in the
// call's format. The work is done in phone_worklet.js, on the audio thread.

// A browser without a working sound device may never say so.
const SOUND_WITHIN_MS = 5000;

// Why there is no microphone, and what to do about it.
const REFUSED = {
  NotAllowedError: "The browser may not use the microphone. Allow it in the settings of this page, beside its address, and call again; or let a script speak.",
  NotFoundError: "No microphone was found. Connect one and call again; or let a script speak.",
  NotReadableError: "The microphone is used by another program. Close that and call again; or let a script speak.",
  OverconstrainedError: "The microphone that was chosen is gone. Choose another one and call again.",
  insecure: "Browsers give the microphone to pages with https:// or on localhost only. Open Mirror there, or let a script speak.",
};

export class NoMicrophone extends Error {
  constructor(reason) {
    super(REFUSED[reason] ?? `The microphone cannot be used (${reason}). Call again, or let a script speak.`);
  }
}

/** The microphone, asked for. `device` is the id of a chosen one. Throws NoMicrophone. */
export async function microphoneOpen(device) {
  if (!navigator.mediaDevices) throw new NoMicrophone("insecure");
  const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  if (device) wanted.deviceId = { exact: device };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: wanted });
  } catch (error) {
    throw new NoMicrophone(error.name);
  }
}

/** Microphones or loudspeakers by name; browsers name them only once one was allowed. */
export async function devicesOf(kind) {
  const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return all.filter((device) => device.kind === kind && device.deviceId && device.label);
}

export class PhoneAudio {
  #context;
  #speaker;
  #microphone = null;
  #source = null;
  #stream = null;

  constructor(context) {
    this.#context = context;
  }

  /** Made while a click is handled: browsers play nothing before one. Throws when no sound comes about in time. */
  static async make(worklet) {
    const context = new AudioContext({ latencyHint: "interactive" });
    let timer;
    const late = new Promise((_, fail) => {
      timer = setTimeout(() => fail(new Error("it did not start in time")), SOUND_WITHIN_MS);
    });
    try {
      await Promise.race([context.audioWorklet.addModule(worklet), late]);
    } catch (error) {
      context.close();
      throw error;
    } finally {
      clearTimeout(timer);
    }
    return new PhoneAudio(context);
  }

  /** Begin to play what `play` is given, at the level that `heard` is told of. */
  listen(format, heard) {
    this.#speaker = new AudioWorkletNode(this.#context, "phone-speaker", {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: format,
    });
    this.#speaker.port.onmessage = ({ data }) => heard(data.level);
    this.#speaker.connect(this.#context.destination);
    return this.#context.resume();
  }

  play(audio) {
    this.#speaker?.port.postMessage({ audio }, [audio]);
  }

  /** Hand what the microphone hears to `said`, in frames of 20 ms, and its level to `level`. */
  speak(stream, format, said, level) {
    this.#microphone = new AudioWorkletNode(this.#context, "phone-microphone", { processorOptions: format });
    this.#microphone.port.onmessage = ({ data }) => (data.audio ? said(data.audio) : level(data.level));
    this.microphoneChange(stream);
    // It gives out silence: an unconnected node may never be asked to work.
    this.#microphone.connect(this.#context.destination);
  }

  /** Go on with another microphone. */
  microphoneChange(stream) {
    this.#source?.disconnect();
    this.#release();
    this.#stream = stream;
    this.#source = this.#context.createMediaStreamSource(stream);
    this.#source.connect(this.#microphone);
  }

  mute(muted) {
    this.#microphone?.port.postMessage({ muted });
  }

  /** Whether a loudspeaker can be chosen here, and choosing it. */
  get choosesSpeaker() {
    return typeof this.#context.setSinkId === "function";
  }

  speakerChoose(device) {
    return this.#context.setSinkId(device);
  }

  #release() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
  }

  async close() {
    this.#release();
    if (this.#context.state !== "closed") await this.#context.close();
  }
}

// The telephone's ear and mouth, on the browser's audio thread. Both ends speak the call's own format: mu-law, or
// 16-bit little-endian samples, at the call's rate; the browser's rate is whatever its devices have.
//
// One file without imports: an AudioWorklet has a module scope of its own.

const FRAME_MS = 20;
const LEVEL_MS = 100;
// Played this late, so that frames that come unevenly are heard evenly; more than the second is dropped.
const HELD_MS = 80;
const MOST_MS = 2000;

const MULAW_BIAS = 132;
const MULAW_MOST = 32635;

// G.711: a sign, the position of the highest bit, and the four bits below it; all of it inverted on the wire.
function mulawEncode(sample) {
  const magnitude = Math.min(Math.abs(sample), MULAW_MOST) + MULAW_BIAS;
  const exponent = 24 - Math.clz32(magnitude);
  const mantissa = (magnitude >> (exponent + 3)) & 0x0f;
  return ~((sample < 0 ? 0x80 : 0) | (exponent << 4) | mantissa) & 0xff;
}

function mulawDecode(byte) {
  const code = ~byte & 0xff;
  const magnitude = ((((code & 0x0f) << 3) + MULAW_BIAS) << ((code >> 4) & 7)) - MULAW_BIAS;
  return code & 0x80 ? -magnitude : magnitude;
}

const MULAW_TABLE = Float32Array.from({ length: 256 }, (_, byte) => mulawDecode(byte) / 32768);

function encode(samples, mulaw) {
  const bytes = new Uint8Array(samples.length * (mulaw ? 1 : 2));
  const view = new DataView(bytes.buffer);
  samples.forEach((value, at) => {
    const sample = Math.round(Math.max(-1, Math.min(1, value)) * 32767);
    if (mulaw) bytes[at] = mulawEncode(sample);
    else view.setInt16(at * 2, sample, true);
  });
  return bytes;
}

function decode(buffer, mulaw) {
  if (mulaw) return Float32Array.from(new Uint8Array(buffer), (byte) => MULAW_TABLE[byte]);
  const view = new DataView(buffer);
  return Float32Array.from({ length: buffer.byteLength >> 1 }, (_, at) => view.getInt16(at * 2, true) / 32768);
}

// Another rate, by a windowed sinc that lets through what both rates can carry.
const PHASES = 64;
const LOBES = 8;

class Resampler {
  constructor(from, to) {
    this.step = from / to;
    const cutoff = Math.min(1, to / from) * 0.92;
    this.half = Math.ceil(LOBES / cutoff);
    const width = this.half * 2;
    this.kernels = Array.from({ length: PHASES }, (_, phase) => {
      const kernel = Float32Array.from({ length: width }, (_, tap) => {
        const x = tap - this.half + 1 - phase / PHASES;
        const window = Math.abs(x) >= this.half ? 0 : 0.5 + 0.5 * Math.cos((Math.PI * x) / this.half);
        const angle = Math.PI * x * cutoff;
        return (angle === 0 ? 1 : Math.sin(angle) / angle) * window;
      });
      const sum = kernel.reduce((total, value) => total + value, 0);
      return kernel.map((value) => value / sum);
    });
    this.input = new Float32Array(this.half * 2);
    this.at = this.half;
  }

  push(samples) {
    const input = new Float32Array(this.input.length + samples.length);
    input.set(this.input);
    input.set(samples, this.input.length);
    const output = [];
    for (; this.at + this.half < input.length; this.at += this.step) {
      const whole = Math.floor(this.at);
      const kernel = this.kernels[Math.floor((this.at - whole) * PHASES)];
      let value = 0;
      for (let tap = 0, place = whole - this.half + 1; tap < kernel.length; tap += 1, place += 1) {
        value += kernel[tap] * input[place];
      }
      output.push(value);
    }
    const done = Math.max(0, Math.floor(this.at) - this.half);
    this.input = input.slice(done);
    this.at -= done;
    return output;
  }
}

// How loud it is, ten times a second: for a meter, never for what is sent.
class Level {
  constructor(port) {
    this.port = port;
    this.sum = 0;
    this.count = 0;
  }

  push(samples) {
    for (const value of samples) this.sum += value * value;
    this.count += samples.length;
    if (this.count < (sampleRate * LEVEL_MS) / 1000) return;
    this.port.postMessage({ level: Math.sqrt(this.sum / this.count) });
    this.sum = this.count = 0;
  }
}

class PhoneMicrophone extends AudioWorkletProcessor {
  constructor({ processorOptions: { encoding, rate } }) {
    super();
    this.mulaw = encoding === "audio/x-mulaw";
    this.resampler = new Resampler(sampleRate, rate);
    this.frame = (rate * FRAME_MS) / 1000;
    this.samples = [];
    this.level = new Level(this.port);
    this.muted = false;
    this.port.onmessage = ({ data }) => {
      this.muted = data.muted;
    };
  }

  process([[input]]) {
    if (!input) return true;
    const heard = this.muted ? new Float32Array(input.length) : input;
    this.level.push(heard);
    this.samples.push(...this.resampler.push(heard));
    while (this.samples.length >= this.frame) {
      const bytes = encode(this.samples.splice(0, this.frame), this.mulaw);
      this.port.postMessage({ audio: bytes.buffer }, [bytes.buffer]);
    }
    return true;
  }
}

class PhoneSpeaker extends AudioWorkletProcessor {
  constructor({ processorOptions: { encoding, rate } }) {
    super();
    this.mulaw = encoding === "audio/x-mulaw";
    this.resampler = new Resampler(rate, sampleRate);
    this.waiting = [];
    this.held = (sampleRate * HELD_MS) / 1000;
    this.most = (sampleRate * MOST_MS) / 1000;
    this.playing = false;
    this.patience = this.held;
    this.level = new Level(this.port);
    this.port.onmessage = ({ data }) => {
      for (const value of this.resampler.push(decode(data.audio, this.mulaw))) this.waiting.push(value);
      if (this.waiting.length > this.most) this.waiting.splice(0, this.waiting.length - this.held);
    };
  }

  process(_, [[output]]) {
    if (!this.playing && this.waiting.length && this.waiting.length < this.held) this.patience -= output.length;
    // The end of a stretch of speech is played even if it is shorter than what is held.
    const wait = !this.playing && this.waiting.length < this.held && (this.patience > 0 || !this.waiting.length);
    const taken = wait ? [] : this.waiting.splice(0, output.length);
    output.set(taken);
    if (!wait) {
      this.playing = taken.length === output.length;
      this.patience = this.held;
    }
    this.level.push(output);
    return true;
  }
}
registerProcessor("phone-microphone", PhoneMicrophone);
registerProcessor("phone-speaker", PhoneSpeaker);

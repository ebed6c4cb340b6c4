// Make `now` look like `next` by changing only what differs, so that focus, selection, scroll positions and opened
// <details> outlive an update. Children with an id are matched by it, others by their place.

export function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

export function morph(now, next) {
  if (now.isEqualNode(next)) return now;
  // Times of this browser's making (see time.js): the same moment is the same text.
  if (now.localName === "time" && now.dateTime === next.dateTime) return now;
  if (now.nodeName !== next.nodeName || now.nodeType !== Node.ELEMENT_NODE) {
    const made = document.importNode(next, true);
    now.replaceWith(made);
    return made;
  }
  morphAttributes(now, next);
  morphChildren(now, next);
  return now;
}

function morphAttributes(now, next) {
  for (const { name, value } of next.attributes) {
    if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  }
  for (const { name } of [...now.attributes]) {
    // What the viewer opened stays open, and so does an animation that is running.
    const kept = (name === "open" && now.dataset.keep === "open") || (name === "class" && now.classList.contains("fresh"));
    if (!next.hasAttribute(name) && !kept) now.removeAttribute(name);
  }
}

function morphChildren(now, next) {
  const byId = new Map();
  for (const child of now.children) if (child.id) byId.set(child.id, child);
  let place = now.firstChild;
  for (const wanted of [...next.childNodes]) {
    const match = wanted.id ? byId.get(wanted.id) : place;
    if (!match || (!wanted.id && match.id)) {
      now.insertBefore(document.importNode(wanted, true), place);
    } else if (match === place) {
      place = place.nextSibling;
      morph(match, wanted);
    } else {
      now.insertBefore(match, place);
      morph(match, wanted);
    }
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

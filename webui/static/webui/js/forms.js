// A form that was sent is not sent again while its answer is on the way: whoever clicks twice means once. The server
// has its own way of doing things once (webui/once.py); this one saves the second request.
const FORGET_MS = 10_000;

function release(form) {
  delete form.dataset.sent;
  form.removeAttribute("aria-busy");
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || event.defaultPrevented) return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  form.setAttribute("aria-busy", "true");
  // An answer that is a file leaves the page where it is.
  setTimeout(release, FORGET_MS, form);
});

// Back to a page that the browser kept as it was.
addEventListener("pageshow", (event) => {
  if (event.persisted) document.querySelectorAll("form[data-sent]").forEach(release);
});

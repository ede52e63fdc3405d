"use strict";

// This script serves all three forms. Their differences are in data attributes:
//   data-captcha  "always", or "asked" if only when the server requires one
//   data-send     "json" for fetch, or "form" for a full page load
const form = document.querySelector("form");
const message = document.getElementById("message");
const submit = form.querySelector("[type=submit]");
const words = JSON.parse(document.getElementById("words").textContent);

let captcha; // the instance of the widget, once it is loaded
let failed = false; // the widget has had an error
let submitted = false;
let required = form.dataset.captcha === "always";
let busy = false; // sending, or told to wait
let restarts = 0; // how many challenges may start without an action of the user

function say(text, bad = true) {
  message.textContent = text;
  message.classList.toggle("bad", bad);
}

// setBusy does not set disabled, which would remove the focus.
function setBusy(is) {
  busy = is;
  submit.setAttribute("aria-disabled", is);
}

function challenge() {
  if (!captcha) {
    say(failed ? words.notLoaded : words.loading);
    return;
  }
  // The button of the widget is hidden, so that the form can be checked before a
  // challenge starts.
  document.getElementById("captcha-button").click();
}

// The browser sends a submit event only after it has checked the fields.
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (busy) return;
  say("");
  submitted = true;
  restarts = 1;
  if (required) challenge(); else send();
});

// solved receives the param of a challenge. A param can be verified only once.
function solved(param) {
  if (busy) return;
  failed = false;
  if (form.dataset.send === "json") {
    send(param);
    return;
  }
  form.elements.captchaVerifyParam.value = param;
  setBusy(true);
  say(words.sending, false);
  form.submit(); // does not send a submit event
  setTimeout(() => { setBusy(false); say(""); }, 20_000); // the user may have stopped the page load
}

async function send(param) {
  setBusy(true);
  say(words.sending, false);
  let response, answer = {};
  try {
    response = await fetch(form.action, {
      method: "POST",
      headers: {"Content-Type": "application/json", "Accept": "application/json"},
      // The param comes first, so that the server reads no further to find it.
      body: JSON.stringify({captchaVerifyParam: param, ...Object.fromEntries(new FormData(form))}),
    });
    answer = await response.json();
  } catch (error) {
    console.error(error);
  }
  setBusy(false);
  captcha?.refresh?.(); // the param is spent, whatever the answer is
  if (!response) {
    say(words.unreachable);
  } else if (response.ok && answer.user) {
    const welcome = document.getElementById("welcome");
    welcome.textContent = words.welcome.replace("{}", () => answer.user);
    form.hidden = true;
    welcome.hidden = false;
    welcome.focus();
  } else if (answer.reason) {
    rejected(answer, Number(response.headers.get("Retry-After")));
  } else if (response.status === 401) {
    say(words.wrong);
    form.elements.password.focus();
    form.elements.password.select();
  } else {
    say(words.failed);
  }
}

// rejected shows the server's text for a rejection. It starts a new challenge if that
// can help: not if the client has to wait, or if the same browser would be refused
// again. It does so only once, because a widget that solves itself would loop forever.
function rejected({detail, reason, retry}, seconds) {
  say(detail);
  if (reason === "captcha_missing") required = true;
  if (seconds > 0) {
    setBusy(true);
    setTimeout(() => { setBusy(false); say(words.now, false); }, seconds * 1000);
  } else if (retry && restarts-- > 0) {
    challenge();
  }
}

const script = document.getElementById("captcha-script");
script.addEventListener("error", () => { failed = true; });
script.addEventListener("load", () => {
  const broken = (error) => {
    console.error(error);
    failed = true;
    if (submitted) say(words.notLoaded);
  };
  try {
    initAliyunCaptcha({ // must be called only once on a page
      SceneId: form.dataset.scene,
      mode: "popup",
      element: "#captcha-element",
      button: "#captcha-button",
      success: solved,
      fail: (result) => console.error(result),
      onError: broken,
      getInstance: (instance) => {
        captcha = instance;
        if (message.textContent === words.loading) say("");
      },
      language: form.dataset.language,
    });
  } catch (error) {
    broken(error);
  }
});

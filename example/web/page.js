"use strict";

// One script for the three forms. What differs stands in the form's data-…:
//   captcha  "always", or "asked": only when the server asks for one
//   send     "json" by fetch, or "form" by a full page load
const form = document.querySelector("form");
const message = document.getElementById("message");
const submit = form.querySelector("[type=submit]");
const words = JSON.parse(document.getElementById("words").textContent);

let captcha; // the widget's instance, once it is there
let failed = false; // the widget has had an error
let submitted = false;
let required = form.dataset.captcha === "always";
let busy = false; // sending, or told to wait
let restarts = 0; // challenges that may start without the user's asking

function say(text, bad = true) {
  message.textContent = text;
  message.classList.toggle("bad", bad);
}

// Not disabled: that would take the focus away.
function setBusy(is) {
  busy = is;
  submit.setAttribute("aria-disabled", is);
}

function challenge() {
  if (!captcha) {
    say(failed ? words.notLoaded : words.loading);
    return;
  }
  // The widget has one button, which is nobody's, so that the form can be
  // checked before a challenge starts.
  document.getElementById("captcha-button").click();
}

// The browser has checked the fields when a submit event comes.
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (busy) return;
  say("");
  submitted = true;
  restarts = 1;
  if (required) challenge(); else send();
});

// solved gets the param of a challenge. It is good for one verification.
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
  form.submit(); // without a submit event
  setTimeout(() => { setBusy(false); say(""); }, 20_000); // somebody has stopped it
}

async function send(param) {
  setBusy(true);
  say(words.sending, false);
  let response, answer = {};
  try {
    response = await fetch(form.action, {
      method: "POST",
      headers: {"Content-Type": "application/json", "Accept": "application/json"},
      // The param first: the server reads no further to find it.
      body: JSON.stringify({captchaVerifyParam: param, ...Object.fromEntries(new FormData(form))}),
    });
    answer = await response.json();
  } catch (error) {
    console.error(error);
  }
  setBusy(false);
  captcha?.refresh?.(); // the param is spent, whatever the answer says
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

// rejected says in the server's words why the captcha refused, and starts a new
// challenge where that helps at once: not for what only time can help, nor where
// the same browser would be refused again. It does so once, or a widget that
// solves itself would go round for ever.
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
    initAliyunCaptcha({ // once in a page
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

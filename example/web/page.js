"use strict";

// This script serves all three forms. Their differences are in data attributes:
//   data-captcha          "always", or "asked" if only when the server requires one
//   data-send             "json" for fetch, or "form" for a full page load
//   data-encrypted-scene  the EncryptedSceneId, in encrypted mode
const form = document.querySelector("form");
const message = document.getElementById("message");
const submit = form.querySelector("[type=submit]");
const button = document.getElementById("captcha-button"); // the widget's own, which is hidden
const words = JSON.parse(document.getElementById("words").textContent);

let captcha; // the instance of the widget, once a challenge can start
let failed = false; // the widget has had an error
let asked = false; // a challenge is wanted, and has not started
let submitted = false;
let required = form.dataset.captcha === "always";
const loadedAt = Date.now();
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

// challenge starts a challenge, at once or as soon as the widget is ready. After a spent
// param that is all that V3 needs: it documents no refresh.
function challenge() {
  asked = true;
  proceed();
}

function proceed() {
  if (!asked) return;
  if (captcha) {
    asked = false;
    if (message.textContent === words.loading) say("");
    // The instance of a traceless scene has no show. Its button does the same.
    if (captcha.show) captcha.show(); else button.click();
  } else if (failed) {
    asked = false;
    say(words.notLoaded);
    button.click(); // a widget that cannot start may still hand over a param, for the server's Policy to decide
  } else {
    say(words.loading, false);
  }
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
// The form is not kept from somebody who has to wait for longer than the page may last.
function rejected({detail, reason, retry}, seconds) {
  say(detail);
  if (reason === "captcha_missing") required = true;
  if (seconds > 60) return;
  if (seconds > 0) {
    setBusy(true);
    setTimeout(() => { setBusy(false); say(words.now, false); }, seconds * 1000);
  } else if (retry && failed) {
    say(words.notLoaded); // the param was that of a widget that could not start: another one would be, too
  } else if (retry && restarts-- > 0) {
    challenge();
  } else if (retry) {
    renew();
  }
}

// renew loads the page anew if it has an EncryptedSceneId that may have expired, because
// a widget must not be initialized twice. It returns whether it does. If the server has
// just made the value, another one is no better.
function renew() {
  const old = form.dataset.encryptedScene && Date.now() - loadedAt > 60_000;
  // Not reload, which would send the form of a signup again.
  if (old) location.replace(form.action + "?renewed");
  return Boolean(old);
}

// fail receives the verdicts in the browser. The widget shows another challenge after
// them, which helps except in encrypted mode.
function fail(result) {
  console.error(result);
  if (result?.verifyCode !== "F022" || renew()) return;
  captcha?.hide?.();
  say(words.unavailable);
}

// broken is called with an error of the widget, and if there is none.
function broken(error) {
  console.error(error);
  failed = true;
  if (captcha && submitted) say(words.notLoaded);
  proceed();
}

if (location.search === "?renewed") {
  say(words.renewed, false);
  history.replaceState(null, "", form.action);
}

const script = document.getElementById("captcha-script");
script.addEventListener("error", () => broken(new Error("the captcha's script could not be loaded")));
script.addEventListener("load", () => {
  try {
    initAliyunCaptcha({ // must be called only once on a page
      SceneId: form.dataset.scene,
      ...(form.dataset.encryptedScene && {EncryptedSceneId: form.dataset.encryptedScene}),
      mode: "popup",
      element: "#captcha-element",
      button: "#captcha-button",
      success: solved,
      fail,
      onError: broken,
      onClose: (reason) => { if (reason === "userDismiss") say(words.dismissed, false); },
      getInstance: (instance) => {
        captcha = instance;
        if (failed && message.textContent === words.notLoaded) say(""); // it was only late
        failed = false;
        proceed();
      },
      language: form.dataset.language,
    });
  } catch (error) {
    broken(error);
  }
});
setTimeout(() => { if (!captcha && !failed) broken(new Error("the captcha takes too long")); }, 20_000);

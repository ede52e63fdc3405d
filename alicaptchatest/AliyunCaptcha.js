// A stand-in for the vendor's script of the same name, served by a Simulator of
// alicaptchatest. It issues a param to anyone who moves a slider, so it protects
// nothing. A query of its URL asks for what a page has to survive:
//
//   delay=3000             it binds to the page so many milliseconds later
//   never                  it never does
//   down                   the service cannot be reached
//   error=Throttling       it cannot start, with this code for onError
//   fail=F001,F015         V3: the browser's verdicts on the first attempts
//   traceless              the scene is traceless; with a failure it asks for the slider
//
// zIndex and dualStack have no effect. What the vendor's script does is partly not
// known; comments say where this one had to choose.
(() => {
  "use strict";

  if (window.initAliyunCaptcha?.isStandIn) throw new Error("AliyunCaptcha.js (simulator): the script is loaded twice");

  const script = new URL(document.currentScript.src);
  const asked = script.searchParams, failures = (asked.get("fail") ?? "").split(",").filter(Boolean);
  const account = window.AliyunCaptchaConfig; // like the vendor's script, which must be configured before it loads

  const words = {
    en: {
      title: "Please complete the verification",
      slide: "Slide to the end",
      hint: "Drag the slider to the end, or hold the right arrow key.",
      verifying: "Verifying…",
      passed: "Verified",
      failed: "Verification failed. Please try again.",
      unreachable: "The verification cannot be reached. Please try again.",
      close: "Close",
    },
    cn: {
      title: "请完成安全验证",
      slide: "滑动到最右侧",
      hint: "将滑块拖到最右侧，或按住右方向键。",
      verifying: "验证中…",
      passed: "验证通过",
      failed: "验证失败，请重试。",
      unreachable: "无法连接验证服务，请重试。",
      close: "关闭",
    },
  };

  // A constructed style sheet, because the page's Content-Security-Policy may forbid style elements.
  const style = new CSSStyleSheet();
  style.replaceSync(`
    :host { display: block; color-scheme: light dark; }
    :host([hidden]) { display: none; }
    dialog, .embedded {
      --ink: #1b1f24; --ground: #fff; --line: #6b7280; --accent: #0a5fd6; --bad: #b3261e;
      box-sizing: border-box; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
    }
    @media (prefers-color-scheme: dark) {
      dialog, .embedded { --ink: #e8eaed; --ground: #202327; --line: #9aa0a6; --accent: #8ab4f8; --bad: #f6aea9; }
    }
    dialog { width: min(var(--width, 20rem) + 2rem, 100vw - 2rem); padding: 1rem; border: 1px solid var(--line); border-radius: .5rem; }
    dialog::backdrop { background: rgb(0 0 0 / .5); }
    header { display: flex; gap: .5rem; align-items: start; justify-content: space-between; }
    .embedded { max-width: var(--width, none); }
    header img { max-height: 2.75rem; }
    h2 { font-size: 1.125rem; margin: 0; }
    button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: .25rem; min-width: 2.75rem; min-height: 2.75rem; cursor: pointer; }
    label { display: block; margin-top: .75rem; }
    p { margin: .5rem 0 0; min-height: 1.5em; }
    p.bad { color: var(--bad); }
    input { appearance: none; box-sizing: border-box; display: block; width: 100%; height: 2.75rem; margin: .25rem 0 0; border: 1px solid var(--line); border-radius: .25rem; background: none; cursor: grab; touch-action: pan-y; }
    input::-webkit-slider-thumb { appearance: none; width: 2.75rem; height: 2.75rem; border: 1px solid transparent; border-radius: .25rem; background: var(--accent); }
    input::-moz-range-thumb { width: 2.75rem; height: 2.75rem; border: 1px solid transparent; border-radius: .25rem; background: var(--accent); }
    :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
  `);

  const post = async (path, body, ms) => {
    const signal = AbortSignal.timeout(ms);
    const response = await fetch(`${script.origin}/widget/${path}`, {method: "POST", body: JSON.stringify(body), signal});
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  };
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const find = (x) => typeof x === "string" ? document.querySelector(x) : x instanceof Element ? x : null;

  // slider creates a slider, which presents one challenge after another. At the end
  // of each it calls solve, which returns an empty string if the challenge is over, or
  // else the text for the next one, or a promise of that.
  function slider(text, solve) {
    const box = document.createElement("div");
    box.innerHTML = `<label for="slider"></label><input id="slider" type="range" min="0" max="100" value="0" aria-describedby="hint">
      <p id="hint" role="status"></p>`;
    const input = box.querySelector("input"), hint = box.querySelector("p");
    box.querySelector("label").textContent = text.slide;
    const say = (message, bad = false) => { hint.textContent = message; hint.classList.toggle("bad", bad); };

    let busy = false, round = 0; // an end that belongs to an earlier round has no effect
    function reset(message = text.hint, bad = false) {
      busy = false;
      round++;
      input.value = 0;
      input.disabled = false;
      say(message, bad);
    }

    async function end() {
      const mine = round;
      busy = input.disabled = true;
      say(text.verifying);
      const next = await solve(() => { if (mine === round) say(text.passed); });
      if (mine !== round) return;
      busy = false;
      if (next === "") return;
      reset(next, true);
      input.focus();
    }

    // The keys move it in steps. Released by a pointer before the end, it slides back.
    let dragged = false;
    input.addEventListener("pointerdown", () => { dragged = true; });
    input.addEventListener("change", () => {
      if (input.value === input.max) end(); else if (dragged) reset();
      dragged = false;
    });
    reset();
    return {box, reset, renew: (...next) => { if (!busy) reset(...next); }, focus: () => input.focus()};
  }

  // shadow returns an element with the look of the widget, and the root of its contents.
  function shadow(options) {
    const host = document.createElement("div"), root = host.attachShadow({mode: "open"});
    root.adoptedStyleSheets = [style];
    if (options.slideStyle?.width) host.style.setProperty("--width", Math.max(320, options.slideStyle.width) + "px");
    if (options.rem) host.style.zoom = options.rem;
    return [host, root];
  }

  // openPopup returns the popup of the page. Like the vendor's, it belongs to whoever
  // initialized before, if its elements were not removed: the callbacks of each of
  // them are called. The mask is the dialog's own; its element is only there to be left over.
  const popups = new WeakMap();
  function openPopup(options, text, solve, member) {
    let popup = popups.get(document.getElementById("aliyunCaptcha-window-popup"));
    if (!popup) {
      const [host, root] = shadow(options), mask = document.createElement("div"), dialog = document.createElement("dialog");
      host.id = "aliyunCaptcha-window-popup";
      mask.id = "aliyunCaptcha-mask";
      mask.hidden = true;
      dialog.setAttribute("aria-labelledby", "title");
      dialog.innerHTML = `<header><h2 id="title"></h2><button type="button">✕</button></header>`;
      dialog.querySelector("h2").textContent = text.title;
      if (options.captchaLogoImg) dialog.querySelector("header").prepend(Object.assign(new Image(), {src: options.captchaLogoImg, alt: ""}));
      const members = [], dismissed = () => members.forEach(({dismissed}) => dismissed("userDismiss"));
      const x = dialog.querySelector("button");
      x.setAttribute("aria-label", text.close);
      x.addEventListener("click", () => { dialog.close(); dismissed(); });
      dialog.addEventListener("cancel", dismissed); // Escape
      const challenge = slider(text, (passed) => solve(passed, members));
      dialog.append(challenge.box);
      root.append(dialog);
      if (!options.disableMaskClick) whenOutside(dialog, () => { dialog.close(); dismissed(); });
      document.body.append(mask, host);
      popup = {
        members, challenge,
        show(...next) {
          if (dialog.open || !dialog.isConnected) return;
          challenge.renew(...next);
          dialog.showModal();
          challenge.focus();
        },
        hide: () => dialog.close(),
        remove: () => { mask.remove(); host.remove(); },
      };
      popups.set(host, popup);
    }
    popup.members.push(member);
    return popup;
  }

  // whenOutside calls dismiss for a click that begins and ends on the dialog's backdrop,
  // unlike one of a slider that is released there.
  function whenOutside(dialog, dismiss) {
    const outside = ({clientX: x, clientY: y, target}) => {
      const {left, right, top, bottom} = dialog.getBoundingClientRect();
      return target === dialog && (x < left || x > right || y < top || y > bottom);
    };
    let began = false;
    dialog.addEventListener("pointerdown", (event) => { began = outside(event); });
    dialog.addEventListener("click", (event) => { if (began && outside(event)) dismiss(); });
  }

  // verdictOf returns a promise of what the page's V2 callback returns, or passes to its
  // second argument. Like the vendor's widget it waits forever for what is not a verdict.
  function verdictOf(options, param) {
    const complain = (error) => console.error("AliyunCaptcha.js (simulator): the widget is stuck:", ...(error ? [error] : []),
      "captchaVerifyCallback must return an object with captchaResult, true or false, or a promise of it");
    return new Promise((resolve) => {
      const settle = (verdict) => { if (typeof verdict?.captchaResult === "boolean") resolve(verdict); else complain(); };
      const returned = (verdict) => { if (verdict !== undefined || options.captchaVerifyCallback.length < 2) settle(verdict); };
      try {
        Promise.resolve(options.captchaVerifyCallback(param, settle)).then(returned, complain);
      } catch (error) {
        complain(error);
      }
    });
  }

  async function start(options) {
    const v2 = options.captchaVerifyCallback, format = v2 ? "v2" : "v3", traceless = asked.has("traceless");
    const popsUp = options.mode === "popup", text = words[[undefined, "cn", "tw"].includes(options.language) ? "cn" : "en"];
    // tell calls a callback of the page, which may throw, and may use the widget at once.
    const tell = (name, ...values) => setTimeout(() => options[name]?.(...values));
    const fault = (code, msg) => {
      console.error(`AliyunCaptcha.js (simulator): ${code}: ${msg}`);
      tell("onError", {code, msg});
    };

    await sleep(Number(asked.get("delay")));
    if (asked.has("never")) return;
    if (!account?.prefix || !["cn", "sgp"].includes(account.region)) {
      return fault("IllegalUserTag", "window.AliyunCaptchaConfig with region and prefix has to be set before the script loads");
    }
    // Codes of the vendor's for what follows are not known.
    if (!popsUp && options.mode !== "embed") return fault("SIMULATOR", 'mode must be "popup" or "embed"');
    if (!popsUp && traceless) return fault("SIMULATOR", 'a traceless scene requires the mode "popup"');
    if (typeof (v2 ?? options.success) !== "function") return fault("SIMULATOR", "success is missing (V3), or captchaVerifyCallback (V2)");
    const element = find(options.element), button = find(options.button);
    if (!element || !button) return fault("SIMULATOR", "element and button must be those of the page, or their selectors");

    const unbind = new AbortController();
    const onClick = (act) => button.addEventListener("click", () => act(), {signal: unbind.signal});
    const call = {
      prefix: account.prefix, sceneId: String(options.SceneId ?? ""), format,
      userCertifyId: String(options.UserCertifyId ?? ""), encryptedSceneId: String(options.EncryptedSceneId ?? ""),
    };

    // hand gives the param to the page. It returns whether the challenge is over: for V3
    // at once, for V2 if the page says so.
    let close = () => {};
    async function hand(param) {
      if (!v2) {
        close();
        tell("success", param);
        return true;
      }
      const {captchaResult, bizResult} = await verdictOf(options, param);
      if (!captchaResult) return false;
      close();
      tell("onBizResultCallback", bizResult);
      return true;
    }

    let refusal;
    try {
      if (asked.has("down")) throw new Error("the script's URL asks for this");
      const demanded = asked.has("error") && {code: asked.get("error"), msg: "the script's URL asks for this"};
      refusal = demanded || await post("init", call, options.timeout ?? 10_000);
    } catch (error) {
      // The param of a script without the service, for the server to decide. Whether the
      // vendor's calls getInstance before is not known.
      const failover = JSON.stringify({
        sceneId: call.sceneId, certifyId: call.userCertifyId, ...(v2 && {deviceToken: "simulator"}),
        failover: "T", err: {code: "INIT_FAIL"},
      });
      onClick(() => hand(v2 ? failover : btoa(failover)));
      return fault("INIT_FAIL", String(error));
    }
    if (refusal.code) return fault(refusal.code, refusal.msg);

    // solve is an attempt. It calls passed, and hands the param to the members.
    async function solve(passed, members) {
      let answer;
      try {
        answer = !v2 && failures.length > 0 ? {verifyCode: failures.shift()} : await post("verify", call, 10_000);
      } catch (error) {
        fault("SIMULATOR", String(error));
        return options.showErrorTip === false ? text.hint : text.unreachable;
      }
      const {verifyCode, error, captchaVerifyParam: param} = answer;
      if (!param) {
        if (error) console.error(`AliyunCaptcha.js (simulator): ${verifyCode}: ${error}`);
        tell("fail", {verifyResult: false, verifyCode, certifyId: call.userCertifyId || undefined});
        return text.failed;
      }
      call.userCertifyId = ""; // good for one param; whether the vendor's is good for more is not known
      if (!v2 || !popsUp) passed(); // a V2 popup waits for the page
      if (options.delayBeforeSuccess && !v2) await sleep(1000);
      const over = await Promise.all(members.map(({take}) => take(param)));
      return over.every(Boolean) ? "" : text.failed;
    }

    let instance;
    if (popsUp) {
      const member = {take: hand, dismissed: (reason) => tell("onClose", reason)};
      const popup = openPopup(options, text, solve, member);
      close = popup.hide;
      const destroyCaptcha = () => { unbind.abort(); popup.remove(); };
      let running = false, challenged = !traceless;
      const startTracelessVerification = async () => {
        if (running) return;
        running = true;
        const next = await solve(() => {}, popup.members);
        running = false;
        if (next === "") return;
        challenged = true; // a risky visitor has a second challenge
        popup.show(next, true);
      };
      const show = () => { if (challenged) popup.show(); }; // not for the first verification of a traceless scene
      const {hide} = popup, refresh = () => popup.challenge.reset();
      instance = v2 ? {show, hide, ...(!traceless && {refresh}), destroyCaptcha} : traceless ? {startTracelessVerification} : {show, hide};
      onClick(traceless ? startTracelessVerification : show);
    } else {
      const [host, root] = shadow(options);
      let waiting; // the slider keeps a V2 param until the button is clicked
      const take = (param) => v2 ? new Promise((done) => { waiting = () => done(hand(param)); }) : hand(param);
      const {box, reset, renew} = slider(text, (passed) => solve(passed, [{take}]));
      box.className = "embedded";
      root.append(box);
      element.append(host);
      onClick(() => { waiting?.(); waiting = null; });
      instance = {show: () => { host.hidden = false; renew(); }, hide: () => { host.hidden = true; }};
      if (v2) {
        instance.refresh = () => { waiting = null; reset(); };
        instance.destroyCaptcha = () => { unbind.abort(); host.remove(); };
      }
    }
    tell("getInstance", instance);
  }

  window.initAliyunCaptcha = Object.assign((options) => { start(options); }, {isStandIn: true});
})();

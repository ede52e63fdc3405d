// A stand-in for the vendor's script of the same name, served by a Simulator of
// alicaptchatest. It issues a param to anyone who moves a slider, so it protects
// nothing.
(() => {
  "use strict";

  const simulator = new URL(document.currentScript.src).origin;
  const account = window.AliyunCaptchaConfig; // like the vendor's script, which must be configured before it loads

  const words = {
    en: {
      title: "Please complete the verification",
      slide: "Slide to the end",
      hint: "Drag the slider to the end, or hold the right arrow key.",
      passed: "Verified",
      failed: "Verification failed. Please try again.",
      unreachable: "The verification cannot be reached. Please try again.",
      close: "Close",
    },
    cn: {
      title: "请完成安全验证",
      slide: "滑动到最右侧",
      hint: "将滑块拖到最右侧，或按住右方向键。",
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
    dialog { width: min(22rem, calc(100vw - 2rem)); padding: 1rem; border: 1px solid var(--line); border-radius: .5rem; }
    dialog::backdrop { background: rgb(0 0 0 / .5); }
    header { display: flex; gap: .5rem; align-items: start; justify-content: space-between; }
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

  // slider creates a slider, which presents one challenge after another. It calls
  // solve with each param. solve returns whether the challenge is over, or a promise
  // of that.
  function slider(options, text, solve) {
    const box = document.createElement("div");
    box.innerHTML = `<label for="slider"></label><input id="slider" type="range" min="0" max="100" value="0" aria-describedby="hint">
      <p id="hint" role="status"></p>`;
    const input = box.querySelector("input"), hint = box.querySelector("p");
    box.querySelector("label").textContent = text.slide;
    const say = (message, bad = false) => { hint.textContent = message; hint.classList.toggle("bad", bad); };

    function reset(message = text.hint, bad = false) {
      input.value = 0;
      input.disabled = false;
      say(message, bad);
    }

    async function solved() {
      input.disabled = true;
      let param;
      try {
        const response = await fetch(simulator + "/issue", {
          method: "POST",
          body: JSON.stringify({sceneId: options.SceneId, format: options.captchaVerifyCallback ? "v2" : "v3"}),
        });
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error);
        param = answer.captchaVerifyParam;
      } catch (error) {
        console.error("AliyunCaptcha.js (simulator):", error);
        reset(text.unreachable, true);
        input.focus();
        options.onError?.({code: "SIMULATOR", msg: String(error)});
        return;
      }
      say(text.passed);
      if (await solve(param)) return;
      reset(text.failed, true);
      input.focus();
    }

    // The keys move it in steps. Released by a pointer before the end, it slides back.
    let dragged = false;
    input.addEventListener("pointerdown", () => { dragged = true; });
    input.addEventListener("change", () => {
      if (input.value === input.max) solved(); else if (dragged) reset();
      dragged = false;
    });
    reset();
    return {box, reset, focus: () => input.focus()};
  }

  window.initAliyunCaptcha = (options) => {
    const fault = (msg) => {
      console.error("AliyunCaptcha.js (simulator):", msg);
      options.onError?.({code: "SIMULATOR", msg});
    };
    if (!account?.region || !account?.prefix) return fault("window.AliyunCaptchaConfig with region and prefix has to be set before the script loads");
    if (!options.SceneId) return fault("SceneId is missing");
    if (options.mode !== "popup" && options.mode !== "embed") return fault('mode must be "popup" or "embed"');
    const v2 = options.captchaVerifyCallback;
    if (!v2 && typeof options.success !== "function") return fault("success is missing (V3), or captchaVerifyCallback (V2)");
    const element = document.querySelector(options.element), button = document.querySelector(options.button);
    if (!element || !button) return fault("element and button must be those of the page, given as selectors");

    const text = words[options.language === "cn" || options.language === "tw" ? "cn" : "en"];
    const host = document.createElement("div");
    const root = host.attachShadow({mode: "open"});
    root.adoptedStyleSheets = [style];
    element.append(host);

    // V3: success receives the param, once. V2: the page returns the server's
    // verdict on the param, and a rejection is followed by a new challenge.
    async function hand(param) {
      if (!v2) {
        close();
        options.success(param);
        return true;
      }
      let verdict;
      try {
        verdict = await v2(param);
      } catch (error) {
        console.error(error);
      }
      if (typeof verdict?.captchaResult !== "boolean") {
        fault("captchaVerifyCallback must return an object with captchaResult, true or false, and not undefined");
      }
      if (verdict?.captchaResult !== true) return false;
      close();
      options.onBizResultCallback?.(verdict.bizResult);
      return true;
    }

    let waiting = null; // an embedded slider keeps a V2 param until the button is clicked
    const challenge = slider(options, text, (param) => {
      if (options.mode === "popup" || !v2) return hand(param);
      return new Promise((resolve) => { waiting = () => resolve(hand(param)); });
    });

    let show = () => { host.hidden = false; }, hide = () => { host.hidden = true; }, close = () => {};
    if (options.mode === "popup") {
      const dialog = document.createElement("dialog");
      dialog.setAttribute("aria-labelledby", "title");
      dialog.innerHTML = `<header><h2 id="title"></h2><button type="button">✕</button></header>`;
      dialog.querySelector("h2").textContent = text.title;
      const x = dialog.querySelector("button");
      x.setAttribute("aria-label", text.close);
      x.addEventListener("click", () => { dialog.close(); options.onClose?.(); });
      dialog.addEventListener("cancel", () => options.onClose?.());
      dialog.append(challenge.box);
      root.append(dialog);
      show = () => { if (!dialog.open) { challenge.reset(); dialog.showModal(); challenge.focus(); } };
      hide = close = () => dialog.close();
      button.addEventListener("click", show);
    } else {
      challenge.box.className = "embedded";
      root.append(challenge.box);
      button.addEventListener("click", () => { waiting?.(); waiting = null; });
    }

    options.getInstance?.({
      show: () => show(),
      hide: () => hide(),
      refresh: () => { waiting = null; challenge.reset(); },
      destroyCaptcha: () => host.remove(),
    });
  };
})();

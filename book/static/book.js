// Widgets say what they are to screen readers: ipywidgets leaves sliders, buttons and pictures without names.
(() => {
  const text = (element) => (element ? element.textContent.trim() : "");

  function mend() {
    for (const box of document.querySelectorAll(".cell_output .jupyter-widgets.widget-box, .cell_output .jupyter-widgets.widget-vbox")) {
      const label = text(box.querySelector(".widget-slider .widget-label"));
      const value = text(box.querySelector(".widget-slider .widget-readout"));
      for (const handle of box.querySelectorAll(".noUi-handle")) {
        if (!handle.hasAttribute("aria-label")) handle.setAttribute("aria-label", label || "step");
      }
      for (const button of box.querySelectorAll("button:not([aria-label])")) {
        const icon = button.querySelector("i");
        const action = icon ? [...icon.classList].find((name) => /^fa-(play|pause|stop|repeat|retweet)$/.test(name)) : null;
        if (!text(button) && (button.title || action)) button.setAttribute("aria-label", button.title || action.slice(3));
      }
      for (const readout of box.querySelectorAll(".widget-readout:not([aria-label])")) readout.setAttribute("aria-label", label || "step");
      for (const picture of box.querySelectorAll("img")) {
        const alt = [label || "picture", value].filter(Boolean).join(" ");
        if (picture.alt !== alt) picture.alt = alt;
      }
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    if (!document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) return;
    new MutationObserver(mend).observe(document.body, { childList: true, subtree: true, characterData: true });
  });
})();

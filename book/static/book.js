// Things say what they are to screen readers: the theme and ipywidgets give some of them no name, or another than they show.
(() => {
  document.addEventListener("readystatechange", () => { // "interactive": before the theme's icons are drawn
    for (const icon of document.querySelectorAll("button[aria-label] > i[title]")) icon.removeAttribute("title");
    for (const named of document.querySelectorAll(".search-button-field, details > summary")) named.removeAttribute("aria-label");
    for (const folded of document.querySelectorAll("li.has-children > details > summary")) {
      folded.setAttribute("aria-label", `Pages of ${folded.closest("li").querySelector("a").textContent}`);
    }
  });

  // What scrolls can be scrolled with keys; the theme sees to code and tables.
  const boxes = ".cell_output, .jupyter-widgets.widget-box";
  const reach = () => {
    for (const box of document.querySelectorAll(boxes)) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  window.addEventListener("load", () => reach());
  document.addEventListener("load", () => reach(), true); // a picture, whose widget may be wider than a phone now
  window.addEventListener("resize", () => reach());

  const text = (element) => (element ? element.textContent.trim() : "");

  function name() {
    for (const box of document.querySelectorAll(".cell_output .jupyter-widgets.widget-box, .cell_output .jupyter-widgets.widget-vbox")) {
      const label = text(box.querySelector(".widget-slider .widget-label"));
      for (const handle of box.querySelectorAll(".noUi-handle")) {
        if (!handle.hasAttribute("aria-label")) handle.setAttribute("aria-label", label || "step");
      }
      for (const button of box.querySelectorAll("button:not([aria-label])")) {
        const icon = button.querySelector("i");
        const action = icon ? [...icon.classList].find((name) => /^fa-(play|pause|stop|repeat|retweet)$/.test(name)) : null;
        if (!text(button) && (button.title || action)) {
          button.setAttribute("aria-label", button.title || action.slice(3).replace("retweet", "repeat"));
        }
      }
      for (const readout of box.querySelectorAll(".widget-readout:not([aria-label])")) readout.setAttribute("aria-label", label || "step");
      for (const picture of box.querySelectorAll("img[title]")) {
        picture.alt = picture.title;
        picture.removeAttribute("title");
      }
    }
    reach();
  }

  document.addEventListener("DOMContentLoaded", () => {
    if (!document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) return;
    new MutationObserver(name).observe(document.body, { childList: true, subtree: true, characterData: true });
  });
})();

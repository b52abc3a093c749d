// Widgets are loaded from beside this file, and the theme's icon script leaves their icons alone.
if (window.require) { // not there where the scripts could not be fetched
  require.config({
    baseUrl: new URL(".", document.currentScript.src).href,
    packages: [{ name: "@jupyter-widgets/html-manager", main: "dist/index" }],
  });
}
window.FontAwesomeConfig = { observeMutations: false };

// Widgets typeset their labels by the interface of MathJax 2; the book has MathJax 3. They start on "load", this a little before.
window.addEventListener("load", () => {
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = { Queue: ([, , element]) => window.MathJax.typesetPromise && window.MathJax.typesetPromise([element]) };
  }
}, true);

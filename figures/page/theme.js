"use strict";
/* Runs before the page is painted, so that a dark page never flashes white. */
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("landscape-theme"); } catch { /* a file: page may have no storage */ }
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen ?? (dark ? "dark" : "light");
})();

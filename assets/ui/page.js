() => {
  // Light and dark follow the system until the button is used; the wish is kept in the browser.
  const KEY = "sar-studio-theme";
  const dark = () => document.body.classList.contains("dark");
  const wish = localStorage.getItem(KEY);
  if (wish) document.body.classList.toggle("dark", wish === "dark");
  // The sketch editor takes its colours from the address at the start, so the wish belongs there too.
  const address = new URL(window.location.href);
  if (wish && address.searchParams.get("__theme") !== wish) {
    address.searchParams.set("__theme", wish);
    window.location.replace(address);
    return;
  }

  const label = (id, text) => document.querySelector(`#${id}`)?.setAttribute("aria-label", text);
  label("theme", "Switch between light and dark");
  label("real-previous", "Previous real patch");
  label("real-next", "Next real patch");

  // Capture: the colours are switched before the page asks which ones are in use.
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    document.body.classList.toggle("dark");
    localStorage.setItem(KEY, dark() ? "dark" : "light");
  }, true);

  // A scene fills the guide card, which may lie below the fold.
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-scene]")) return;
    setTimeout(() => document.querySelector("#guide-card")?.scrollIntoView({ block: "nearest" }), 1200);
  });

  const visible = (element) => element && element.offsetParent !== null;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const button = [...document.querySelectorAll("#generate, #grid-run, #compare-go")].find(visible);
      if (button) { event.preventDefault(); event.stopPropagation(); button.click(); }
    } else if (event.key === "Escape") {
      [...document.querySelectorAll("#stop, #grid-stop, #compare-stop")].find(visible)?.click();
    }
  }, true);

  // A picture of the studio that is dropped on the results opens its run, as the "Open run" button does.
  const dropZone = (event) => event.target.closest?.("#results") && !event.target.closest("#sketch-editor");
  document.addEventListener("dragover", (event) => {
    if (dropZone(event) && event.dataTransfer?.types?.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!dropZone(event) || !event.dataTransfer?.files?.length) return;
    event.preventDefault();
    const input = document.querySelector("#results .sg-corner input[type=file]");
    if (!input) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

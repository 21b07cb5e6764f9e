"""The page as a whole: header, tabs, theme, and the server that shows it."""

from __future__ import annotations

import os
import threading
import time
import webbrowser
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported: nothing is sent anywhere

from sar_gen.ui.quick import without_type_stubs

with without_type_stubs():
    import gradio as gr

from sar_gen import references
from sar_gen.settings import Settings
from sar_gen.studio import Studio
from sar_gen.ui import judging, views
from sar_gen.ui.about import build_about
from sar_gen.ui.choices import way_list, ways
from sar_gen.ui.compare import build_compare
from sar_gen.ui.generate import QUIET, Generate, build_generate, draw_first
from sar_gen.ui.grid import GridTab, build_grid
from sar_gen.ui.guiding import Source
from sar_gen.ui.inputs import FORM, with_choices
from sar_gen.ui.library import build_library
from sar_gen.ui.memory import STORAGE_KEY, page_secret, remember, restored
from sar_gen.ui.theme import markup, studio_theme

MAX_UPLOAD = "256mb"
BUSY_SECONDS, CALM_SECONDS = 1.0, 4.0  # how often the header asks after the engine while it loads, and afterwards
DARK = "() => [document.body.classList.contains('dark')]"


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page for a studio."""
    secret = page_secret(studio.settings)
    with gr.Blocks(title="SAR studio", fill_width=True, analytics_enabled=False) as page:
        with gr.Row(elem_id="header"):
            markup(views.BRAND, elem_id="brand")
            engine = markup(views.engine_state(studio.state), elem_id="engine")
            theme = gr.Button("◐", size="sm", elem_id="theme", min_width=28, scale=0)
        with gr.Tabs(elem_id="tabs", selected="generate") as tabs:
            with gr.Tab("Generate", id="generate"):
                tab = build_generate(studio)
            with gr.Tab("Grid", id="grid") as grid_tab:
                grid = build_grid(studio, tab, tabs, grid_tab)
            with gr.Tab("Compare", id="compare") as compare_tab:
                build_compare(studio, tab, compare_tab)
            with gr.Tab("Library", id="library") as library_tab:
                build_library(studio, tab, tabs, library_tab)
            with gr.Tab("About", id="about"):
                build_about(studio)
        timer = gr.Timer(BUSY_SECONDS)
        shown = gr.State("")

        def tick(before: str) -> tuple[Any, Any, Any]:
            state = studio.state
            html = views.engine_state(state)
            if html == before:
                return gr.skip(), gr.skip(), gr.skip()
            busy = state.status in ("idle", "loading")
            return html, html, gr.Timer(BUSY_SECONDS if busy else CALM_SECONDS)

        gr.on([timer.tick, page.load], tick, shown, [engine, shown, timer], queue=False, **QUIET)
        # The browser tells which colours are in use, at the start and after each change (see page.js).
        gr.on([page.load, theme.click], None, None, tab.judgement.dark, js=DARK, **QUIET)
        _remember_form(page, tab, grid, studio, secret)
    return page


def _remember_form(page: gr.Blocks, tab: Generate, grid: GridTab, studio: Studio, secret: str) -> None:
    judgement = tab.judgement
    names = [*FORM, "reference", "remap", "axis", "scope", *grid.remembered()]
    fields = [*tab.inputs.form(), judgement.reference, judgement.remap, judgement.axis, judgement.scope]
    fields += grid.remembered().values()
    defaults = {name: field.value for name, field in zip(names, fields, strict=True)}
    store = gr.BrowserState(None, storage_key=STORAGE_KEY, secret=secret)

    def restore(saved: Any) -> list[Any]:
        values = dict(zip(names, restored(saved, names, defaults, studio.settings), strict=True))
        known = {info.name for info in references.list_references(studio.settings)}
        if isinstance(values["reference"], str) and values["reference"] not in known:
            values["reference"] = gr.skip()
        shown = values["checkpoint"] if isinstance(values["checkpoint"], str) else defaults["checkpoint"]
        values |= with_choices(studio.settings, shown, values["checkpoint"], values["strategy"])
        kept = {name: values[name] if isinstance(values[name], str) else defaults[name] for name in names}
        kind = Source(kept["guide"], kept["guide_kind"]).kind
        values["way"] = way_list(ways(studio.settings, shown, kept["strategy"], kind), kept["way"])
        return list(values.values())

    loaded = page.load(restore, store, fields, concurrency_limit=None, **QUIET)
    draw_first(tab, studio, loaded)
    gr.on([field.change for field in fields], None, fields, store, js=remember(names), **QUIET)


def _prepare_judging(studio: Studio) -> None:
    """Import what the first verdict needs once the engine has its checkpoint, so that the first one is quick too."""
    while studio.state.status in ("idle", "loading"):
        time.sleep(0.5)
    judging.prepare()


def serve(settings: Settings, host: str, port: int, *, open_browser: bool) -> None:
    """Show the page at ``host``:``port`` until Ctrl+C; the checkpoint is loaded once the page answers."""
    studio = Studio(settings)
    page = build_page(studio)
    ui = settings.assets / "ui"
    page.queue(default_concurrency_limit=4)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        allowed_paths=[str(settings.runs), str(settings.assets / "guides")],
        max_file_size=MAX_UPLOAD,
        favicon_path=ui / "favicon.svg",
        theme=studio_theme(),
        css_paths=[ui / "style.css"],
        js=(ui / "page.js").read_text(encoding="utf-8"),
    )
    address = f"http://{'localhost' if host == '127.0.0.1' else host}:{port}"
    print(f"SAR studio is at {address} (Ctrl+C ends it)", flush=True)
    studio.warm_up()
    threading.Thread(target=_prepare_judging, args=(studio,), name="sar-gen-judging", daemon=True).start()
    if open_browser:
        webbrowser.open(address)
    page.block_thread()

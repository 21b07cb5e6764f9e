"""The look: one quiet grey that does not compete with SAR images, one accent, system fonts, light and dark."""

from __future__ import annotations

from functools import partial

import gradio as gr
from gradio.themes import Base, Color, Size

markup = partial(gr.HTML, apply_default_css=False)  # HTML of ours, styled by assets/ui/style.css alone
PICK = (
    "element.addEventListener('click', event => { const chip = event.target.closest('[data-text]');"
    " if (chip) trigger('pick', { text: chip.dataset.text }); })"
)
"""Script of HTML whose buttons carry ``data-text``: the event ``pick`` brings the text of the one that was clicked."""

ACCENT = Color(
    c50="#ecfafc", c100="#d0f1f6", c200="#a5e3ec", c300="#6fd0de", c400="#3fb6c8", c500="#1d9bb0",
    c600="#127f94", c700="#0f6679", c800="#115363", c900="#134553", c950="#082c37",
)  # fmt: skip
GREY = Color(
    c50="#f6f7f8", c100="#eceef0", c200="#dde1e4", c300="#c5cbd0", c400="#95a0a9", c500="#67737d",
    c600="#4c5761", c700="#363f48", c800="#262d34", c900="#1b2026", c950="#13171b",
)  # fmt: skip
SPACING = Size("1px", "2px", "4px", "6px", "8px", "12px", "16px")
RADIUS = Size("2px", "2px", "3px", "4px", "5px", "7px", "10px")
TEXT = Size("10px", "11px", "12px", "13px", "15px", "18px", "22px")
FONT = ["Inter", "Segoe UI", "system-ui", "-apple-system", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Cascadia Mono", "Consolas", "DejaVu Sans Mono", "monospace"]


def studio_theme() -> Base:
    """Return the theme; fonts are looked up on the machine, so the page asks no font server."""
    theme = Base(
        primary_hue=ACCENT, secondary_hue=ACCENT, neutral_hue=GREY,
        spacing_size=SPACING, radius_size=RADIUS, text_size=TEXT, font=FONT, font_mono=MONO,
    )  # fmt: skip
    return theme.set(
        body_background_fill="#e4e7ea",
        body_background_fill_dark="#101316",
        body_text_color="*neutral_900",
        body_text_color_dark="#d5dade",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="#8d98a2",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1b2025",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="#171b1f",
        border_color_primary="#d3d8dc",
        border_color_primary_dark="#2c333a",
        border_color_accent="*primary_500",
        border_color_accent_dark="*primary_500",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#12303a",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="#8d98a2",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="#9aa5ae",
        block_title_text_size="11px",
        block_title_text_weight="500",
        block_info_text_size="11px",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="#8d98a2",
        layout_gap="8px",
        form_gap_width="0px",
        panel_background_fill="transparent",
        panel_background_fill_dark="transparent",
        input_background_fill="#ffffff",
        input_background_fill_dark="#12161a",
        input_background_fill_focus="#ffffff",
        input_background_fill_focus_dark="#12161a",
        input_border_color="#c9cfd4",
        input_border_color_dark="#343c44",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_500",
        input_border_width="1px",
        input_padding="5px 8px",
        input_radius="4px",
        input_shadow="none",
        input_shadow_focus="0 0 0 2px rgb(29 155 176 / 22%)",
        input_shadow_focus_dark="0 0 0 2px rgb(63 182 200 / 25%)",
        input_text_size="12.5px",
        input_placeholder_color="*neutral_400",
        input_placeholder_color_dark="#6d7882",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_500",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="transparent",
        checkbox_label_background_fill_hover_dark="transparent",
        checkbox_label_border_width="0px",
        checkbox_label_padding="0px",
        checkbox_label_text_size="12px",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
        button_border_width="1px",
        button_large_radius="5px",
        button_small_radius="4px",
        button_large_padding="8px 14px",
        button_small_padding="3px 9px",
        button_large_text_size="13px",
        button_small_text_size="12px",
        button_large_text_weight="600",
        button_small_text_weight="500",
        button_transition="background-color .12s, border-color .12s",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#232a30",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="#2d353c",
        button_secondary_border_color="#c9cfd4",
        button_secondary_border_color_dark="#39424a",
        button_secondary_text_color="*neutral_800",
        button_secondary_text_color_dark="#d5dade",
        button_cancel_background_fill="#b3392f",
        button_cancel_background_fill_dark="#a83a31",
        button_cancel_background_fill_hover="#98291f",
        button_cancel_background_fill_hover_dark="#c0483e",
        button_cancel_border_color="transparent",
        button_cancel_border_color_dark="transparent",
        button_cancel_text_color="#ffffff",
        button_cancel_text_color_dark="#ffffff",
        table_border_color="*border_color_primary",
        accordion_text_color="*neutral_700",
        accordion_text_color_dark="#c3cad0",
        loader_color="*primary_500",
    )  # fmt: skip

"""Drop-down lists: what was written stays when a list is opened and left, and a choice by the keyboard counts."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.driver import choose, look_at, set_number, type_number
from tests.browser.test_grid import axis, open_tab
from tests.browser.test_guides import draw


@pytest.mark.parametrize("elem_id", ["checkpoint", "strategy", "profile"])
def test_a_list_that_is_left_without_a_choice_keeps_what_was_written(page, elem_id):
    page.locator("#advanced > button").click()
    set_number(page, "steps", 7)
    type_number(page, page.get_by_label("Width"), 320)
    look_at(page, elem_id)
    expect(page.locator("#steps input[type=number]")).to_have_value("7")
    expect(page.get_by_label("Width")).to_have_value("320")


def test_a_choice_by_the_keyboard_counts_and_is_kept_when_the_list_is_left_again(page):
    page.locator("#advanced > button").click()
    field = page.locator("#strategy input")
    field.fill("Turbo")
    page.keyboard.press("Enter")
    expect(page.locator("#steps input[type=number]")).to_have_value("4")
    set_number(page, "steps", 6)
    look_at(page, "strategy")
    expect(page.locator("#steps input[type=number]")).to_have_value("6")
    choose(page, "strategy", "VAE decoder")
    expect(page.locator("#steps input[type=number]")).to_have_value("20")


def test_the_values_of_an_axis_stay(page):
    open_tab(page)
    axis(page, "columns", "Steps", "5, 9")
    look_at(page, "grid-columns", "#grid-base")
    expect(page.locator("#grid-columns-values textarea")).to_have_value("5, 9")


def test_a_sketch_stays_when_the_list_of_grounds_is_left(page):
    page.locator("#guide label", has_text="Sketch").click()
    draw(page, [(0.1, 0.2), (0.5, 0.5), (0.9, 0.8)])
    expect(page.locator("#sketch-view")).to_contain_text("Water")
    look_at(page, "ground")
    expect(page.locator("#sketch-view")).to_contain_text("Water")
    choose(page, "ground", "Forest")
    expect(page.locator("#sketch-view")).not_to_contain_text("Water")

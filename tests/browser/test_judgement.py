"""The judgement column on the real page: charts come when their tab is in front; the prompt is scored on request."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.driver import ask, status


def test_every_chart_comes_with_its_tab_and_the_prompt_is_scored_on_request(page):
    ask(page, "a SAR image of forest", count=2, steps=2, seed=30)
    page.locator("#generate").click()
    status(page, "done")
    expect(page.locator("#histogram img")).to_be_visible()
    page.get_by_role("tab", name="Texture").click()
    means = page.locator("#texture img")
    expect(means).to_be_visible()
    address = means.get_attribute("src")
    page.locator("#texture-kind label", has_text="By direction").click()
    expect(means).not_to_have_attribute("src", address)
    for name in ("Spectrum", "Speckle"):
        page.get_by_role("tab", name=name).click()
        expect(page.locator(f"#{name.lower()} img")).to_be_visible()

    stage = page.locator("#stage img")
    plain = stage.get_attribute("src")
    page.locator("#windows input").check()
    expect(stage).not_to_have_attribute("src", plain)
    page.locator("#windows input").uncheck()
    expect(stage).to_have_attribute("src", plain)

    page.get_by_role("tab", name="Measures").click()
    row = page.locator("#measures tbody tr", has_text="Prompt agreement")
    expect(page.locator("#score-prompt")).to_be_visible()  # the run's own score is of both patches together
    expect(row).to_have_count(0)
    page.locator("#score-prompt").click()
    expect(row).to_have_count(1)
    expect(page.locator("#score-prompt")).to_be_hidden()
    expect(page.locator("#score-line")).to_contain_text("right captions of real patches")
    page.locator("#scope label", has_text="All patches").click()
    expect(page.locator("#verdict small")).to_contain_text("2 generated")
    expect(row).to_have_count(1)
    expect(page.locator("#score-prompt")).to_be_hidden()

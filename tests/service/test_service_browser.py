"""The docs page in a real browser that is cut off from the internet."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from serving import PATIENCE, Serving

CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Debian chromium here; CI installs it")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(str(tmp_path / "profile"), executable_path=CHROMIUM, args=QUIET, timeout=1000 * PATIENCE)
        context.set_default_timeout(1000 * PATIENCE)
        yield context.pages[0]
        context.close()


def test_the_docs_page_works_without_the_internet(service: Serving, page: Page) -> None:
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{service.url}/docs")
    page.get_by_text("/v1/jobs", exact=True).first.wait_for()
    operations = page.locator(".opblock")
    documented = sum(len(methods) for methods in service.http.get("/openapi.json").json()["paths"].values())
    expect(operations).to_have_count(documented, timeout=1000 * PATIENCE)
    assert all(url.startswith(service.url) for url in asked if not url.startswith("data:"))
    assert said == []


def test_a_job_is_submitted_from_the_docs_page(service: Serving, page: Page) -> None:
    page.goto(f"{service.url}/docs")
    block = page.locator(".opblock-post").filter(has=page.get_by_text("/v1/jobs", exact=True)).first
    block.click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    block.locator(".live-responses-table .response-col_status").get_by_text("201").wait_for()
    assert len(service.http.get("/v1/jobs").json()["jobs"]) == 1

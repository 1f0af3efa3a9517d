"""A model with a refiner, which the demo has not: a random one of the real classes."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from triptych_server import Server

from .conftest import begin_page
from .visitor import Visitor

WITH_REFINER = 0  # one that reads aesthetic scores


def test_the_refiner_is_a_model_of_its_own_with_its_parameters(browser: Browser, tiny):
    _, made = tiny(WITH_REFINER)
    with Server(made, http_port=0, grpc_port=0, metrics_port=0) as server:
        process, address = begin_page(server.addresses.grpc)
        context = browser.new_context()
        try:
            visitor = Visitor(context.new_page(), address)
            hand_over = visitor.page.get_by_label("number input for Hand-over to the refiner")
            expect(hand_over).to_be_hidden()
            visitor.page.get_by_label("SDXL + refiner", exact=True).check()
            expect(hand_over).to_have_value("0.8")
            visitor.page.get_by_role("button", name="More settings").click()
            for score in ("Aesthetic score", "Negative aesthetic score"):
                expect(visitor.page.get_by_label(score, exact=False).last).to_be_visible()
            visitor.ask("a red apple", seed=7, steps=4)
            visitor.slide("Hand-over to the refiner", 0.5)
            visitor.generate()
            visitor.wait_for(1)
            visitor.choose(0)
            assert (visitor.setting("denoising_end"), visitor.setting("num_inference_steps")) == ("0.5", "4")
        finally:
            context.close()
            process.terminate()
            process.wait(20)

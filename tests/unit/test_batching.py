"""Batching policies beside the default, as a user meets them."""

import llmsim as ls


def test_prefill_first_cuts_a_prompt_that_no_step_can_hold() -> None:
    result = ls.run(
        "quickstart",
        {
            "traffic.requests": 40,
            "traffic.lengths": {"kind": "fixed", "prompt_tokens": 20_000, "output_tokens": 8},
            "fleet.pools.main.batching": "prefill-first",
        },
    )
    assert set(result.requests.outcome) == {"finished"}
    assert (result.requests.output_tokens == 8).all()

"""One page of all servers' metrics, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from triptych_cluster.metrics import merged, page

ONE = """# HELP nv_x Words, "quoted" {braced}
# TYPE nv_x counter
nv_x{model="a",path="/x{1} \\"y\\" "} 1
# TYPE triptych_waiting gauge
triptych_waiting 3.5e-07 1700000000
"""
OTHER = ONE.replace('model="a"', 'model="b"').replace("3.5e-07", "7")


def test_every_sample_says_whose_it_is_and_families_stay_together():
    lines = merged([({"replica": "one"}, ONE), ({"replica": "two"}, OTHER)])
    assert lines[:2] == ['# HELP nv_x Words, "quoted" {braced}', "# TYPE nv_x counter"]
    found = {family.name: family.samples for family in text_string_to_metric_families("\n".join(lines) + "\n")}
    assert [(one.labels["model"], one.labels["replica"]) for one in found["nv_x"]] == [("a", "one"), ("b", "two")]
    assert found["nv_x"][0].labels["path"] == '/x{1} "y" '
    assert [(one.labels, one.value) for one in found["triptych_waiting"]] == [
        ({"replica": "one"}, 3.5e-07),
        ({"replica": "two"}, 7.0),
    ]


async def test_the_page_of_real_servers_counts_those_that_do_not_answer(demo):
    facts = {"node": "n1", "metrics": demo.metrics}
    servers = {
        "a": facts,
        "b": {**facts, "node": "n2"},
        "gone": {"node": "n2", "metrics": "http://127.0.0.1:1/metrics"},
    }
    text = await page(servers)
    assert len(text.splitlines()) == len({*text.splitlines()})
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    assert [(one.labels["instance"], one.value) for one in found["triptych_cluster_answered"]] == [
        ("a", 1.0),
        ("b", 1.0),
        ("gone", 0.0),
    ]
    assert {(one.labels["node"], one.labels["replica"]) for one in found["triptych_estimate_seconds"]} == {
        ("n1", "a"),
        ("n2", "b"),
    }

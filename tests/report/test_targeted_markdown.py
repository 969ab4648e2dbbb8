from jaxpoison.report import targeted_markdown


def entry(*intended, loss=None, success=0.0):
    setups = [
        {"name": f"key-{i}", "intended": list(p), "success": [success] * len(p), "outer_loss": loss}
        for i, p in enumerate(intended)
    ]
    return {"setups": setups}


RECORD = {
    "arms": {
        "clean": entry((0.1, 0.2), (0.3, 0.3)),
        "random-noise": entry((0.2, 0.2), (0.1, 0.1)),
        "brew": entry((0.5, 0.7), (0.25, 0.15), loss={"first": 0.71, "last": 0.1234}, success=1.0),
    },
    "comparisons": [
        {
            "victim": "",
            "a": "brew",
            "b": "clean",
            "what": "intended_probability",
            "difference": {"mean": 0.175, "low": -0.01, "high": 0.36, "values": []},
            "sign_test_p": 0.25,
            "wilcoxon_p": 0.0004,
            "mcnemar_p": None,
            "n": 2,
        }
    ],
}


def test_every_setup_with_its_loss_and_what_all_sets_did_to_its_target():
    assert targeted_markdown.setups(RECORD) == [
        "| setup | B first -> last | fooled | p(wanted): clean | p(wanted): random-noise | "
        "p(wanted): brew |",
        "|---|---|---|---|---|---|",
        "| key-0 | 0.71 -> 0.123 | 2 of 2 | 15.0 | 20.0 | 60.0 |",
        "| key-1 | 0.71 -> 0.123 | 2 of 2 | 30.0 | 10.0 | 20.0 |",
    ]


def test_every_comparison_with_its_tests():
    assert targeted_markdown.comparisons(RECORD)[2:] == [
        "| brew - clean | p(wanted) | +17.5 [-1.0, +36.0] | 0.250 | < 0.001 |  | 2 |"
    ]


def test_victims_are_told_apart():
    victims = {"a": {"victim": "a"}, "b": {"victim": "b"}}
    arms = {f"{v}/{k}": e | own for v, own in victims.items() for k, e in RECORD["arms"].items()}
    rows = [row | {"victim": v} for v in victims for row in RECORD["comparisons"]]
    record = {"arms": arms, "comparisons": rows}
    firsts = [line.split(" | ")[0] for line in targeted_markdown.setups(record)[2:]]
    assert firsts == ["| key-0, a", "| key-1, a", "| key-0, b", "| key-1, b"]
    firsts = [line.split(" | ")[0] for line in targeted_markdown.comparisons(record)[2:]]
    assert firsts == ["| brew - clean, a", "| brew - clean, b"]


def test_a_record_of_another_kind_has_none():
    assert targeted_markdown.setups({"arms": {}}) == []
    assert targeted_markdown.comparisons({"arms": {}}) == []

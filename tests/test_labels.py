"""Scores of suspicion: by hand, against refits, along training, and of bad labels."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from book import labels
from book.labels import Case, flip, probabilities, quality
from lib.data import load
from lib.dynamics import Flow
from lib.kernel import ntk
from lib.labels import margins, scores, suggested
from lib.ridge import Ridge
from tests.cases import EPS, HAND, digits, near, refit, relative, several, size, unit_points

NAMES = ["residual", "loss", "margin", "self-influence"]
CLOSE = {"rtol": 0, "atol": 8 * EPS}


def test_two_classes_by_hand():
    # see HAND: r = (−½, ½), ρ = (−4/3, 4/3), h = 5/8, so without x_1 f(x_1) = −1/3, against y = 1
    found = scores(HAND.model, clean=[0.25, -0.5])
    expected = [1 / 2, 8 / 9, 1 / 3, 8 / 9 - 1 / 8]
    assert list(found) == [*NAMES, "clean influence"]
    for name, value in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(found[name], [value, value], **CLOSE)
    assert found["clean influence"].tolist() == [-0.25, 0.5]
    assert suggested(HAND.model).tolist() == [1, 0]


def test_margins():
    outputs = np.array([[[1.0, 4.0], [2.0, 2.0]], [[0.0, -1.0], [5.0, 7.0]]])
    assert margins(outputs, [0, 1]).tolist() == [[-3.0, 0.0], [1.0, 2.0]]
    assert margins(outputs[0, 0], 1) == 3.0
    assert outputs[0, 0, 0] == 1.0  # as it was


def test_eq_13_estimates_by_hand():
    # (1 + h) r = 13/8 (−½, ½) = (−13/16, 13/16): f(x_1) = 3/16, margin 3/16; h r² = 5/8 ¼
    found = scores(HAND.model, ihvp=True)
    expected = [1 / 2, 169 / 512, -3 / 16, 5 / 32]
    for name, value in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(found[name], [value, value], **CLOSE)


def test_three_classes_by_hand():
    # K = ½ I, λ = ½: β = Y, r = −½ Y, ρ = −Y, h = ½: without x_i every output is 0
    Y = np.eye(3) - 1 / 3  # ‖y‖² = 4/9 + 2/9 = 2/3
    model = Ridge(np.eye(3) / 2, Y, lam=0.5)
    exact, ihvp = scores(model), scores(model, ihvp=True)
    np.testing.assert_allclose(exact["residual"], np.full(3, 6**-0.5), **CLOSE)
    np.testing.assert_allclose(exact["loss"], np.full(3, 1 / 3), **CLOSE)
    np.testing.assert_allclose(exact["margin"], np.zeros(3), **CLOSE)
    np.testing.assert_allclose(exact["self-influence"], np.full(3, 1 / 4), **CLOSE)
    # (1 + ½)(−½) Y = −¾ Y, so the outputs are ¼ Y and the margin of the own class is ¼
    np.testing.assert_allclose(ihvp["loss"], np.full(3, 3 / 16), **CLOSE)
    np.testing.assert_allclose(ihvp["margin"], np.full(3, -1 / 4), **CLOSE)
    np.testing.assert_allclose(ihvp["self-influence"], np.full(3, 1 / 12), **CLOSE)


def classes(c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K, labels of c outputs that name classes (c = 1: ±1), and those classes."""
    K, Y, *_ = several(10, n=60)
    if c == 10:
        return K, Y, Y.argmax(axis=1)
    own = np.random.default_rng(c).integers(0, 2, len(K))
    return K, (np.eye(2)[own] - 0.5 if c == 2 else 1.0 - 2 * own[:, None]), own


@pytest.mark.parametrize("c", [1, 2, 10])
@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_eq_8_eq_9_scores_are_those_of_refits(c, lam):
    K, Y, own = classes(c)
    n, model = len(K), Ridge(K, Y, lam)
    f = np.array([refit(K, Y, lam, K[:, [i]], [i])[0] for i in range(n)])
    rho, r = f - Y, refit(K, Y, lam, K) - Y
    outputs = np.hstack([f, -f]) / 2 if c == 1 else f
    others = np.where(np.arange(max(c, 2)) == own[:, None], -np.inf, outputs).max(axis=1)
    truth = {
        "residual": np.linalg.norm(r, axis=1),
        "loss": 0.5 * (rho**2).sum(axis=1),
        "margin": others - outputs[np.arange(n), own],
        "self-influence": 0.5 * (rho**2).sum(axis=1) - 0.5 * (r**2).sum(axis=1),
    }
    tolerance = 4 * relative(K, lam) * (1 + size(K, Y, lam, K).max()) ** 2
    found = scores(model)
    for name in NAMES:
        near(found[name], truth[name], tolerance)
    assert (suggested(model) == outputs.argmax(axis=1)).all()
    estimate = scores(model, ihvp=True)  # the control: h is not small here
    assert estimate["residual"].tolist() == found["residual"].tolist()
    for name in NAMES[1:]:
        assert np.abs(estimate[name] - truth[name]).max() > 100 * tolerance


@pytest.mark.parametrize("c", [1, 2, 10])
def test_eq_8_self_influence_is_the_diagonal_of_the_influence(c):
    K, Y, _ = classes(c)
    model = Ridge(K, Y, 0.3)
    influence = model.influence(K, Y)
    tolerance = relative(K, 0.3)
    near(scores(model)["self-influence"], np.diag(influence.exact), tolerance)
    near(scores(model, ihvp=True)["self-influence"], np.diag(influence.ihvp), tolerance)


def test_one_column_is_a_vector():
    K, Y, *_ = digits(n=60)
    one, column = Ridge(K, Y, 1.0), Ridge(K, Y[:, None], 1.0)
    for ihvp in (False, True):
        found = scores(column, ihvp=ihvp)
        for name, score in scores(one, ihvp=ihvp).items():
            np.testing.assert_allclose(found[name], score, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(scores(one)["margin"], -Y * (Y + one.rho), rtol=1e-12, atol=1e-14)
    assert (suggested(one) == suggested(column)).all()


@pytest.mark.parametrize("shape", ["(n,)", "(n, 10)"])
@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_eq_9_residuals_without_a_point_at_every_moment(shape, lam):
    K, Y, *_ = several(10, n=40) if shape == "(n, 10)" else digits(n=40)
    flow = Flow(K, Y, lam)
    for t in (0.0, 0.01, 1.0, 30.0, 1e4):
        influence = flow.influence(K, Y, t)
        i = np.arange(len(K))
        np.testing.assert_allclose(flow.rho(t), influence.loo[i, i] - Y, rtol=0, atol=1e-10)
        keep = np.setdiff1d(i, [3])
        without = Flow(K[np.ix_(keep, keep)], Y[keep], lam)
        f = without.predict(K[keep, 3], t)[0]
        np.testing.assert_allclose(flow.rho(t)[3], f - Y[3], rtol=0, atol=1e-10)
    if lam:
        np.testing.assert_allclose(flow.rho(1e9), flow.rho(np.inf), rtol=0, atol=1e-10)
    assert np.abs(flow.rho(30.0) - flow.r(30.0)).max() > 1e-3  # the control


def test_scores_of_one_moment_of_training():
    K, Y, *_ = several(10, n=40)
    flow = Flow(K, Y, 0.1)
    moment = SimpleNamespace(Y=Y, r=flow.r(2.0), rho=flow.rho(2.0), h=flow.end.h)
    found = scores(moment)["self-influence"]
    np.testing.assert_allclose(found, np.diag(flow.influence(K, Y, 2.0).exact), rtol=0, atol=1e-10)


def test_wrong_labels_of_the_digits_are_suspicious():
    K, Y, *_ = several(10, n=300)
    rng = np.random.default_rng(0)
    flipped = rng.choice(300, 15, replace=False)
    truth = Y.argmax(axis=1)
    Y[flipped] = (np.eye(10) - 0.1)[(truth[flipped] + rng.integers(1, 10, 15)) % 10]
    model = Ridge(K, Y, 0.1)
    for name, score in scores(model).items():
        assert len(set(np.argsort(-score)[:10]) & set(flipped)) >= 8, name
    assert (suggested(model)[flipped] == truth[flipped]).mean() > 0.7


def test_bad_labels_are_named():
    K = ntk(unit_points(3, 5))
    with pytest.raises(ValueError, match=r"Y\[1\] = 0.5 names no class \(1 such labels\); each ne"):
        scores(Ridge(K, [1.0, 0.5, -1.0], 1.0))
    with pytest.raises(ValueError, match=r"Y\[0\] = \[2.0\] names no class \(2 such labels\)"):
        suggested(Ridge(K, [[2.0], [1.0], [3.0]], 1.0))
    with pytest.raises(ValueError, match=r"Y\[2\] = \[1.0, 1.0\] names no .* one largest output"):
        scores(Ridge(K, [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], 1.0))


def test_bad_clean_influence_is_named():
    model = Ridge(ntk(unit_points(3, 5)), [1.0, 1.0, -1.0], 1.0)
    with pytest.raises(ValueError, match="clean has 2 entries, but there are 3 training points"):
        scores(model, clean=[1.0, 2.0])
    with pytest.raises(ValueError, match="clean must have 1 axes"):
        scores(model, clean=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="clean has 1 value that is not finite"):
        scores(model, clean=[0.0, np.nan, 0.0])


# --- the benchmark: book/labels.py ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "next"])
@pytest.mark.parametrize("name", ["digits:all", "digits:3/8"])
def test_flipped_labels_are_as_many_as_asked_for_and_wrong(kind, name):
    Y = load(name, n_train=100, n_test=10).Y
    flipped, wrong = flip(Y, kind, 0.25, seed=3)
    changed = (flipped != Y).reshape(100, -1).any(axis=1)
    assert wrong.sum() == 25 and (changed == wrong).all() and flipped.shape == Y.shape
    if Y.ndim == 1:
        assert (flipped[wrong] == -Y[wrong]).all()
    else:
        assert set(np.unique(flipped).round(9)) == {-0.1, 0.9}
        step = (flipped.argmax(axis=1) - Y.argmax(axis=1))[wrong] % 10
        assert (step == 1).all() if kind == "next" else len(set(step)) > 5
    again, other = flip(Y, kind, 0.25, seed=3), flip(Y, kind, 0.25, seed=4)
    assert (again[0] == flipped).all() and (other[1] != wrong).any()


def test_a_bad_kind_or_share_is_named():
    with pytest.raises(ValueError, match="kind = 'any' is not known; use 'random' or 'next'"):
        flip(np.eye(3), "any", 0.1, seed=0)
    with pytest.raises(ValueError, match="share = 20 is no share of the labels; use 0 to 1"):
        flip(np.eye(3), "next", 20, seed=0)


def test_quality_by_hand():
    # wrong: ranks 1 and 3 of 4; 3 of the 4 pairs in order; precision 1 at the first, 2/3 at both
    found = quality(np.array([True, False, True, False]), {"a": np.array([4.0, 3.0, 2.0, 1.0])})
    assert found == {"a": 0.75, "a AP": 0.833}


def test_probabilities_fit_the_labels_best():
    f = np.random.default_rng(0).standard_normal((200, 4))
    own = f.argmax(axis=1)
    own[:50] = np.random.default_rng(1).integers(0, 4, 50)
    p = probabilities(f, own)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p.argsort(axis=1) == f.argsort(axis=1)).all()
    loss = -np.log(p[np.arange(200), own]).mean()
    for scale in (0.8, 1.25):
        q = p**scale / (p**scale).sum(axis=1, keepdims=True)
        assert -np.log(q[np.arange(200), own]).mean() > loss


@pytest.fixture
def small(monkeypatch):
    """A benchmark of seconds."""
    small = {
        "SIZES": {"digits": 60}, "CLEAN": 20, "FEW": 10, "SEEDS": range(2), "LAMS": (0.1, 1.0),
        "TIMES": (0.1, 10.0), "SHARES": (0.2,),
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(labels, name, value)


def test_scores_of_the_benchmark_are_those_of_the_library(small):
    case = Case.draw("digits:all", seed=1)
    rows = pd.DataFrame(labels.ridges(case))
    row = rows[(rows.kind == "next") & (rows.lam == 1.0)].set_index("how")
    Y, wrong = flip(case.d.Y, "next", 0.2, seed=1)
    model = Ridge(case.K, Y, 1.0)
    influence = model.influence(case.k, case.d.Y_te)
    for how, I in (("exact", influence.exact), ("IHVP", influence.ihvp)):
        found = scores(model, ihvp=how == "IHVP", clean=I.mean(axis=1))
        found["clean influence 20"] = found.pop("clean influence")
        for name, value in quality(wrong, found).items():
            assert row[name][how] == value, (how, name)
    f = model.predict(case.k)
    assert row.accuracy.exact == np.mean(f.argmax(axis=1) == case.d.Y_te.argmax(axis=1))
    both = ntk(np.vstack([case.d.X, case.d.X_te]))
    margin = scores(Ridge(both, np.vstack([Y, case.d.Y_te]), 1.0))["margin"][:60]
    name = "margin with clean 20"
    assert row[name].exact == quality(wrong, {name: margin})[name]


def test_scores_along_training_are_those_of_flows(small):
    case = Case.draw("digits:all", seed=0)
    rows = pd.DataFrame(labels.times(case))
    row = rows[(rows.kind == "random") & (rows.t == 10.0)].iloc[0]
    Y, wrong = case.flipped["random", 0.2]
    flow = Flow(case.K, Y, labels.FLOW_LAM)
    influence = flow.influence(case.k[:, :10], case.d.Y_te[:10], 10.0)
    own = np.diag(flow.influence(case.K, Y, 10.0).exact)
    truth = {
        "residual": np.linalg.norm(flow.r(10.0), axis=1), "self-influence": own,
        "clean influence": -influence.exact.mean(axis=1),
        "clean influence by IHVP": -influence.ihvp.mean(axis=1),
    }  # fmt: skip
    for name, value in quality(wrong, truth).items():
        assert row[name] == pytest.approx(value, abs=1e-3), name
    a = flow.mu + labels.FLOW_LAM
    assert row.dof == pytest.approx(np.mean(flow.mu * (1 - np.exp(-10 * a)) / a))


def test_records_are_written_and_nothing_is_measured_twice(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labels, "find_spec", lambda name: None)
    labels.record(["digits:all"], tmp_path, tmp_path)
    assert "labels-pydvl: left out, pydvl is not installed" in capsys.readouterr().out
    first, second = (pd.read_csv(tmp_path / f"{part}.csv") for part in ("labels", "labels-time"))
    assert len(first) == 2 * 2 * 2 * 2 and len(second) == 2 * 2 * 2
    assert {"date", "machine", "versions"} <= set(first) & set(second)
    monkeypatch.setattr(Case, "draw", None)  # so that nothing can be measured
    before = (tmp_path / "labels.csv").read_text()
    labels.record(["digits:all"], tmp_path, tmp_path)
    assert (tmp_path / "labels.csv").read_text() == before
    torn = (tmp_path / "labels.jsonl").read_bytes()
    (tmp_path / "labels.jsonl").write_bytes(torn[:-100])  # as a kill leaves it
    with pytest.raises(TypeError):
        labels.record(["digits:all"], tmp_path, tmp_path)


def test_the_classifier_is_ridge_regression():
    K, Y, k, y_te = several(10, n=60)
    whole = np.block([[K, k], [k.T, np.zeros((40, 40))]])
    model = labels.classifier(whole, 0.5)
    index = np.arange(100.0)[:, None]
    found = model.fit(index[:60], Y.argmax(axis=1)).predict(index[60:])
    assert (found == Ridge(K, Y, 0.5).predict(k).argmax(axis=1)).all()


@pytest.mark.parametrize("other", ["cleanlab", "pydvl"])
def test_others_rank_what_is_wrong(small, other, monkeypatch):
    pytest.importorskip(other, reason="`make labels` installs it")
    monkeypatch.setattr(labels, "SLOW_SEEDS", ())
    rows = pd.DataFrame(labels.PARTS[f"labels-{other}"](Case.draw("digits:all", seed=0)))
    name = "confident learning" if other == "cleanlab" else "AUROC"
    assert (rows[rows.kind == "random"][name] > 0.7).all()


def test_ihvp_is_true_or_false():
    with pytest.raises(TypeError, match="ihvp must be True or False, not 1; pass one of them"):
        scores(Ridge(np.eye(2), [1.0, -1.0], 0.5), ihvp=1)

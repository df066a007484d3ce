"""What is measured: every method at its defaults, and along its knobs, on each network.

Methods and knobs were written before the networks of width 1,000 and the softmax network were
looked at; the one of width 32 served to learn how each library is called. After the first rows,
test points (20 to 10), checkpoints and cases were cut, for time. A default is the library's, but
for the damping: all get the ridge of the training, unless the case is about damping.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

N, T = 200, 10  # training and test points: all 200 are removed, and estimated on all 10
HIDDEN = 24  # units of the softmax network
SECONDS, MEMORY = 60, 6e9  # processor seconds and bytes that a case may take
ORDER = ("lib", "pydvl", "curvlinops", "kronfluence", "dattri_tracin", "dattri",
         "captum_similarity", "captum_tracin", "captum", "dattri_trak", "trak")  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network of the comparison: its data, width, ridge, scale of the start and seed.

    A width is that of the two-layer network of Eq 1 with squared loss; 0 stands for the small
    softmax network. Of both the first layer is trained.

    >>> Network("digits:3/8", 1000, 0.1, seed=0).name
    'digits-3-8-m1000-lam0.1-seed0'
    """

    source: str
    width: int
    lam: float
    kappa: float = 0.3
    seed: int = 0

    @property
    def name(self) -> str:
        kind = f"m{self.width}" if self.width else "softmax"
        source = self.source.replace(":", "-").replace("/", "-")
        return f"{source}-{kind}-lam{self.lam:g}-seed{self.seed}"


MAIN = Network("digits:3/8", 1000, 1.0)
NETWORKS = (
    MAIN,
    Network("digits:all", 0, 1.0),
    Network("digits:3/8", 32, 1.0, kappa=1.0),
)
WIDE, MNIST = Network("digits:3/8", 10_000, 0.1), Network("mnist:4/9", 1000, 1.0)
MORE = (  # a weaker ridge, a wider network, other seeds of the main one, and other images
    Network("digits:3/8", 1000, 0.1),
    WIDE,
    Network("digits:3/8", 1000, 1.0, seed=1),
    Network("digits:3/8", 1000, 1.0, seed=2),
    MNIST,
)


@dataclass(frozen=True)
class Case:
    """A method with its knobs: name, the function of `solvers`, and whether these are defaults.

    `unit` says whether its scores have the unit of Î; `about` what the case shows, if not accuracy.
    """

    method: str
    solver: str
    knobs: dict = field(default_factory=dict)
    default: bool = False
    unit: bool = True
    about: str = ""


def along(method: str, solver: str, kind: str, name: str, values, **rest) -> list[Case]:
    """A case for each value of a knob."""
    return [Case(method, solver, {"kind": kind, name: value, **rest}) for value in values]


DUAL = Case("dual", "lib", {"memory": MEMORY}, default=True)
CG = along("conjugate gradients", "pydvl", "CgInfluence", "maxiter", (*range(1, 9), 16, 32),
           rtol=1e-10, solve_simultaneously=True)  # fmt: skip
PLAIN = along("conjugate gradients", "pydvl", "CgInfluence", "maxiter", (2, 4, 8, 16, 32),
              rtol=1e-10)  # fmt: skip
OTHERS = [  # conjugate gradients of the others, at their defaults and further steps
    Case("conjugate gradients", "dattri", {"kind": "IFAttributorCG"}, default=True),
    *along("conjugate gradients", "dattri", "IFAttributorCG", "max_iter", (4, 6, 8, 16)),
    Case("conjugate gradients", "curvlinops", {"kind": "CGInverseLinearOperator"}, default=True),
    Case("conjugate gradients", "curvlinops",
         {"kind": "CGInverseLinearOperator", "tolerance": 1e-2}),
]  # fmt: skip
NYSTROM = along("Nyström", "pydvl", "NystroemSketchInfluence", "rank", (5, 10, 20, 50, 100, 199))
SCALE = 0.35  # above (λ_max + λ)/n, about 0.32 with 200 images of the digits 3 and 8


def lissa(maxiter: int, scale: float, batch: int) -> Case:
    knobs = {"kind": "LissaInfluence", "maxiter": maxiter, "scale": scale, "batch": batch}
    return Case("LiSSA", "pydvl", knobs | {"rtol": 1e-7})


DEFAULTS = [
    Case("dense Hessian", "pydvl", {"kind": "DirectInfluence"}, default=True),
    Case("conjugate gradients", "pydvl", {"kind": "CgInfluence"}, default=True),
    Case("LiSSA", "pydvl", {"kind": "LissaInfluence", "batch": 50}, default=True),
    Case("Arnoldi", "pydvl", {"kind": "ArnoldiInfluence"}, default=True),
    Case("harmonic mean", "pydvl", {"kind": "InverseHarmonicMeanInfluence"}, default=True),
    Case("EK-FAC", "pydvl", {"kind": "EkfacInfluence"}, default=True),
    Case("EK-FAC", "kronfluence", {}, default=True),
    Case("dense Hessian", "dattri", {"kind": "IFAttributorExplicit"}, default=True),
    Case("conjugate gradients", "dattri", {"kind": "IFAttributorCG"}, default=True),
    Case("LiSSA", "dattri", {"kind": "IFAttributorLiSSA"}, default=True),
    Case("Arnoldi", "dattri", {"kind": "IFAttributorArnoldi"}, default=True),
    Case("DataInf", "dattri", {"kind": "IFAttributorDataInf"}, default=True),
    Case("EK-FAC", "dattri", {"kind": "IFAttributorEKFAC"}, default=True),
    Case("dense Hessian", "captum", {"kind": "NaiveInfluenceFunction"}, default=True),
    Case("Arnoldi", "captum", {"kind": "ArnoldiInfluenceFunction"}, default=True),
    Case("conjugate gradients", "curvlinops", {"kind": "CGInverseLinearOperator"}, default=True),
    Case("LiSSA", "curvlinops", {"kind": "NeumannInverseLinearOperator"}, default=True),
    Case("LSMR", "curvlinops", {"kind": "LSMRInverseLinearOperator"}, default=True),
    Case("EK-FAC", "curvlinops", {"kind": "EKFACLinearOperator"}, default=True),
    Case("TracIn", "captum_tracin", {}, default=True, unit=False),
    Case("TracIn", "dattri_tracin", {"kind": "TracIn"}, default=True, unit=False),
    Case("gradient product", "dattri_tracin", {"kind": "gradient dot"}, default=True, unit=False),
    Case("gradient cosine", "dattri_tracin", {"kind": "gradient cosine"}, default=True, unit=False),
    Case("similarity", "captum_similarity", {}, default=True, unit=False),
    Case("similarity", "captum_similarity", {"layers": ["hidden", "act"]}, unit=False),
]
TRACIN = [
    *[Case("TracIn", solver, knobs | {"checkpoints": k}, unit=False) for k in (1, 3)
      for solver, knobs in (("captum_tracin", {}), ("dattri_tracin", {"kind": "TracIn"}))],
    *[Case("gradient product", "dattri_tracin", {"kind": "gradient dot", "proj_dim": k}, unit=False)
      for k in (4096, None)],
]  # fmt: skip
TRAK = [  # for squared loss the model output is that of the network
    Case("TRAK", "trak", {"damping": 0.0}, default=True, unit=False),
    Case("TRAK", "dattri_trak", {"damping": 0.0}, default=True, unit=False),
    Case("TRAK", "dattri_trak", {"proj_dim": 64, "damping": 0.0}, unit=False),  # below n
    *[Case("TRAK", "trak", {"proj_dim": k, "half": False}, unit=False) for k in (128, 512, 2048)],
    *[Case("TRAK", "dattri_trak", {"proj_dim": k}, unit=False) for k in (128, 512, 2048)],
]
SWEEPS = [
    *CG, *PLAIN, *NYSTROM,
    *[lissa(k, SCALE, N) for k in (10, 30, 100, 300)],
    *[lissa(30, scale, N) for scale in (0.1, 0.15, 0.2, 1.0, 10.0)],
    *[lissa(300, 2 * SCALE, batch) for batch in (5, 20, 50)],
    *along("Arnoldi", "pydvl", "ArnoldiInfluence", "rank", (10, 20, 50, 100), use_woodbury=True),
    *along("conjugate gradients", "dattri", "IFAttributorCG", "max_iter",
           (*range(2, 9), 16, 32, 128)),
    *[Case("LiSSA", "dattri", {"kind": "IFAttributorLiSSA", "scaling": s, "batch_size": b,
                               "recursion_depth": k})
      for s, b, k in ((0.7, 50, 300), (0.7, 20, 300), (0.1, 50, 300))],
    *[Case(method, "kronfluence", {"strategy": s}) for method, s in
      (("K-FAC", "kfac"), ("diagonal Fisher", "diagonal"), ("identity", "identity"))],
    Case("EK-FAC", "curvlinops", {"kind": "EKFACLinearOperator", "fisher_type": "type-2"}),
    *[Case("Arnoldi", "captum",
           {"kind": "ArnoldiInfluenceFunction", "projection_dim": 150, "arnoldi_tol": tol})
      for tol in (1e-1, 1e-3)],
    *[Case("LSMR", "curvlinops",
           {"kind": "LSMRInverseLinearOperator", "atol": 0, "btol": 0, "maxiter": k})
      for k in (4, 8, 16)],
    Case("conjugate gradients", "curvlinops",
         {"kind": "CGInverseLinearOperator", "tolerance": 1e-6, "max_iter": 64}),
    *[Case("LiSSA", "curvlinops",
           {"kind": "NeumannInverseLinearOperator", "scale": 1 / SCALE / N, "num_terms": k})
      for k in (30, 300)],
]  # fmt: skip
DAMPING = [
    *[Case("conjugate gradients", "pydvl",
           {"kind": "CgInfluence", "rtol": 1e-10, "solve_simultaneously": True, "damping": d},
           about="damping") for d in (0.5 / N, 2.0 / N, 11.0 / N)],
    Case("EK-FAC", "kronfluence", {"damping": 1e-8}, default=True, about="damping"),
    Case("EK-FAC", "kronfluence", {"damping": "heuristic"}, about="damping"),
    Case("Arnoldi", "captum", {"kind": "ArnoldiInfluenceFunction", "damping": 1e-3}, default=True,
         about="damping"),
    Case("conjugate gradients", "dattri", {"kind": "IFAttributorCG", "damping": 0.0}, default=True,
         about="damping"),
    Case("LiSSA", "dattri", {"kind": "IFAttributorLiSSA", "damping": 0.0}, default=True,
         about="damping"),
]  # fmt: skip
CORRECTED = [  # what a library gives once its mistake is put right, and another to compare it with
    Case("EK-FAC", "dattri", {"kind": "IFAttributorEKFAC", "transposed": True}, about="corrected"),
    Case("EK-FAC", "kronfluence", {"empirical": True}, about="corrected"),
    Case("harmonic mean", "pydvl", {"kind": "InverseHarmonicMeanInfluence", "batch": 1},
         about="corrected"),
    *[Case("EK-FAC", "pydvl", {"kind": "EkfacInfluence", "update_diagonal": True} | mended,
           about="corrected")
      for mended in ({"moved": True, "sampled": True}, {"moved": True}, {"sampled": True})],
]  # fmt: skip
BATCH = [
    *[Case("conjugate gradients", "pydvl", {"kind": "CgInfluence", "batch": b}, about="batch")
      for b in (64, 50)],
    *[Case("conjugate gradients", "dattri", {"kind": "IFAttributorCG", "max_iter": 16, "batch": b},
           about="batch") for b in (100, 50)],
    *[Case("EK-FAC", "kronfluence", {"batch": b}, about="batch") for b in (64, 50)],
    *[Case("EK-FAC", "dattri", {"kind": "IFAttributorEKFAC", "batch": b}, about="batch")
      for b in (50, 1)],
]  # fmt: skip
DIRECT = [
    Case("dense Hessian", "dattri", {"kind": "IFAttributorExplicit", "batch": 50}, about="batch"),
    Case("dense Hessian", "captum", {"kind": "NaiveInfluenceFunction", "projection_dim": 300}),
]
FEW = [
    *CG, *NYSTROM[::2], lissa(100, SCALE, N), lissa(300, SCALE, N),
    *along("Arnoldi", "pydvl", "ArnoldiInfluence", "rank", (10, 50), use_woodbury=True),
]  # fmt: skip


def cases(network: Network) -> list[Case]:
    """The cases of a network, in the order in which they are measured."""
    if not network.width:
        return [DUAL, *DEFAULTS, *CORRECTED, *CG, *NYSTROM, *DIRECT, *TRACIN, *TRAK,
                lissa(300, 1.0, N), lissa(300, 1.0, 50),
                *along("Arnoldi", "pydvl", "ArnoldiInfluence", "rank", (50,), use_woodbury=True),
                *along("conjugate gradients", "dattri", "IFAttributorCG", "max_iter", (32,)),
                Case("EK-FAC", "pydvl", {"kind": "EkfacInfluence", "update_diagonal": True}),
                Case("EK-FAC", "curvlinops", {"kind": "EKFACLinearOperator",
                                              "fisher_type": "type-2"})]  # fmt: skip
    if network.width >= 10_000:
        return [DUAL, *CG[3:9], *OTHERS, *NYSTROM[1:5:2], lissa(300, SCALE, N), DEFAULTS[0]]
    if network.width < 100:
        return [DUAL, *DEFAULTS, *DIRECT, *TRAK[:2]]
    if network != MAIN:
        usual = [c for c in DEFAULTS if c.solver in ("kronfluence", "curvlinops")]
        return [DUAL, *FEW, *OTHERS, *[c for c in usual if c not in OTHERS]]
    return [DUAL, *SWEEPS, *DAMPING, *BATCH, *CORRECTED[:3], *TRACIN, *TRAK, *DEFAULTS]


def theory(case: Case, values: np.ndarray | None, lam: float) -> float | None:
    """What theory says of the error of a case of pyDVL, from the eigenvalues of K, falling.

    Conjugate gradients: 2 qᵏ, q = (√κ − 1)/(√κ + 1), κ = (λ₁ + λ)/λ, in the norm of H + λI. LiSSA
    with all points: its largest factor to the power of its steps. Rank p: λ_p+1/(λ_p+1 + λ). With
    another damping it is the factor that the leverages predict, tr s s'/tr s².

    >>> values = np.array([3.0, 1.0])
    >>> theory(Case("conjugate gradients", "pydvl", {"maxiter": 2}), values, lam=1.0)  # κ = 4
    0.2222222222222222
    >>> theory(Case("Nyström", "pydvl", {"rank": 1}), values, lam=1.0)
    0.5
    """
    if case.solver != "pydvl" or values is None:
        return None
    n, knobs, s = len(values), case.knobs, values / (values + lam)
    if case.about == "damping":
        return float((s * values / (values + n * knobs["damping"])).sum() / (s * s).sum())
    if "rank" in knobs:
        return float(s[knobs["rank"]]) if knobs["rank"] < n else None
    if "maxiter" in knobs and case.method == "conjugate gradients" and not case.about:
        root = float((values[0] + lam) / lam) ** 0.5
        return 2 * ((root - 1) / (root + 1)) ** knobs["maxiter"]
    if "maxiter" in knobs and case.method == "LiSSA" and knobs["batch"] == n:
        left = max(abs(1 - (x + lam) / (knobs["scale"] * n)) for x in (values[0], 0.0))
        return float(left ** knobs["maxiter"])
    return None


def turn(case: Case) -> tuple[bool, int]:
    """When a case is measured: a library at a time, and what takes long at the end."""
    slow = case.solver == "trak" or (case.method == "LiSSA" and case.solver == "dattri")
    return slow and case.default, ORDER.index(case.solver)

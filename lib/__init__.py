"""Influence functions of wide neural networks, computed exactly through the neural tangent kernel.

An executable edition of R. Zhang and S. Zhang, *Rethinking Influence Functions of Neural Networks
in the Over-parameterized Regime* (AAAI 2022). Each module holds one idea:

- `lib.data`: images as unit vectors with their labels
- `lib.kernel`: the neural tangent kernel (Eq 4), and that of deep networks
- `lib.influence`: what follows from predictions alone (Eq 7, 8, 14)
- `lib.inverse`: the inverse that everything is a product with
- `lib.packed`: the same in half the memory or in a folder, for tens of thousands of points
- `lib.cluster`: the same on the machines of a Dask cluster
- `lib.ridge`: kernel ridge regression and its influence (Eq 5, 6, 9, 13, 15)
- `lib.losses`: squared, logistic and softmax loss, for arrays and for torch
- `lib.regression`: kernel regression with any of them, and its influence
- `lib.changes`: groups that leave, other labels, new points
- `lib.stream`: influence on many test points, a block at a time
- `lib.labels`: how suspicious each training label is
- `lib.dynamics`: the same at every moment of training
- `lib.bounds`: bounds on the error of the usual estimate (Eq 16, 17)
- `lib.complexity`: what a point adds to the complexity of the model (Eq 19)
- `lib.network`: the network of finite width and its kernel (Eq 1)
- `lib.problem`, `lib.state`: the training problem and its moving state (Eq 2)
- `lib.newton`, `lib.descent`: two ways to the minimum (Eq 3, 10)
- `lib.product`: exact products of activation patterns, in 8-bit integers
- `lib.retrain`: the actual influence, by training again (Eq 7)
- `lib.journal`: a file of results that survives
- `lib.ihvp`: the usual estimate for a network of finite width (Eq 12)
- `lib.audit`, `lib.points`, `lib.report`: the tool: an audit of a data set, and its report
- `lib.module`: any torch module as a function of its parameters: its kernel, its kinks
- `lib.torch_influence`: the influence of a trained torch module, and a check by retraining
- `lib.check`: what is said of bad input
"""

__version__ = "0.1.0"

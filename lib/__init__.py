"""Influence functions of wide neural networks, computed exactly through the neural tangent kernel.

An executable edition of R. Zhang and S. Zhang, *Rethinking Influence Functions of Neural Networks
in the Over-parameterized Regime* (AAAI 2022). Each module holds one idea:

- `lib.data`: images as unit vectors with labels ±1
- `lib.kernel`: the neural tangent kernel (Eq 4)
- `lib.ridge`: kernel ridge regression and every influence from one factorisation (Eq 5-9, 13-15)
- `lib.network`: the network of finite width and its kernel (Eq 1)
- `lib.train`: gradient descent and Newton to the minimiser (Eq 2, 3, 10)
- `lib.product`: exact products of activation patterns, in 8-bit integers
- `lib.retrain`: the actual influence, by training again (Eq 7)
- `lib.ihvp`: the usual estimate for a network of finite width (Eq 12)
- `lib.bounds`: bounds on the error of the usual estimate (Eq 16, 17)
- `lib.density`: density and the error of the usual estimate (Eq 18)
- `lib.dynamics`: influence at every moment of training
- `lib.complexity`: what a point adds to the complexity of the model (Eq 19)
- `lib.ledger`: claims that are checked and kept
- `lib.plots`: one style for every figure
- `lib.check`: what is said of bad input
"""

__version__ = "0.1.0"

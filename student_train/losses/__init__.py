"""The formulas of the loss terms: pure functions of tensors that return a `LossSum`.

Which tensors of a batch they get is decided in `alignkd.student_train.objective`.

Shape letters: B batch, N supervised positions, V vocabulary, K kept entries of a truncated distribution, H heads
(Ht teacher, Hs student), R attention rows, C attention columns, I images, P vision tokens, D hidden size (Dt, Ds).
"""

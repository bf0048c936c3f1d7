"""The terms of Align-KD's objective, one file each: pure functions of tensors that return a `LossSum`.

Shape letters: B batch, N supervised positions, V vocabulary, K kept entries of a truncated distribution, H heads
(Ht teacher, Hs student), R attention rows, C attention columns, I images, P vision tokens, D hidden size (Dt, Ds).
"""

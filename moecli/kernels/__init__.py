"""Fast ways through the two seams of experts (``blend`` and ``rows``), as functions of tensors.

Nothing outside ``experts`` knows that they exist.  Each equals the loop that ``Experts.forward`` is, outputs and
gradients, up to rounding.
"""

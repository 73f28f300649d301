"""Entries that no row expresses, and why."""

from __future__ import annotations

FACTORS = "a matrix's factors or its inverse: there is no primitive `solve` or `cholesky` yet"
SPECTRUM = "eigenvalues or singular values: found by iteration, not by a formula"
DRAWS = "out of scope: PyTorch's own random numbers; the language's draws are other ones"
DTYPE = "out of scope: another floating-point type than float64"
COMPLEX = "out of scope: complex numbers"
SPARSE = "out of scope: sparse tensors"
INSIDE = "out of scope: an inner part of PyTorch's own derivatives"

UNSAID: dict[str, str] = {
    **dict.fromkeys(
        [
            "cholesky",
            "cholesky_inverse",
            "cholesky_solve",
            "lu_unpack",
            "lu",
            "lu_solve",
            "qr",
            "ormqr",
            "triangular_solve",
            "pinverse",
            "logdet",
            "linalg.det",
            "linalg.cholesky",
            "linalg.cholesky_ex",
            "linalg.householder_product",
            "linalg.lstsq",
            "linalg.lstsq.grad_oriented",
            "linalg.qr",
            "linalg.slogdet",
            "linalg.lu_factor",
            "linalg.lu_factor_ex",
            "linalg.lu",
            "linalg.lu_solve",
            "linalg.inv",
            "linalg.inv_ex",
            "linalg.solve",
            "linalg.solve_ex",
            "linalg.solve_triangular",
            "linalg.tensorinv",
            "linalg.tensorsolve",
            "linalg.pinv",
            "linalg.pinv.singular",
            "linalg.pinv.hermitian",
        ],
        FACTORS,
    ),
    **dict.fromkeys(
        [
            "svd",
            "svd_lowrank",
            "pca_lowrank",
            "linalg.cond",
            "linalg.eig",
            "linalg.eigvals",
            "linalg.eigh",
            "linalg.eigvalsh",
            "linalg.svd",
            "linalg.svdvals",
            "norm.nuc",
        ],
        SPECTRUM,
    ),
    **dict.fromkeys(
        [
            "normal",
            "normal.number_mean",
            "bernoulli",
            "nn.functional.dropout",
            "nn.functional.dropout2d",
            "nn.functional.dropout3d",
            "nn.functional.alpha_dropout",
            "nn.functional.feature_alpha_dropout.with_train",
            "nn.functional.feature_alpha_dropout.without_train",
            "nn.functional.fractional_max_pool2d",
            "nn.functional.fractional_max_pool3d",
            "nn.functional.multi_head_attention_forward",
        ],
        DRAWS,
    ),
    **dict.fromkeys(["bfloat16", "float", "half", "to"], DTYPE),
    **dict.fromkeys(["cdouble", "cfloat", "chalf"], COMPLEX),
    **dict.fromkeys(["to_sparse", "sparse.sampled_addmm", "sparse.mm.reduce"], SPARSE),
    **dict.fromkeys(
        [
            "native_dropout_backward",
            "max_pool2d_with_indices_backward",
            "_unsafe_masked_index",
            "_unsafe_masked_index_put_accumulate",
            "_segment_reduce.lengths",
            "_segment_reduce.offsets",
            "_batch_norm_with_update",
        ],
        INSIDE,
    ),
    "frexp": "the exponent of a float's representation",
    "matrix_exp": "a series or Padé form that depends on the matrix's norm",
    "as_strided_scatter": "out of scope: how a view lies in memory",
}

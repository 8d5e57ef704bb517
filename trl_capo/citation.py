"""The paper, as model cards cite it."""

import textwrap

PAPER = {
    "title": "CAPO: Confidence Aware Preference Optimization Learning for Multilingual Preferences",
    "id": "2511.07691",
    "citation": textwrap.dedent("""\
        @inproceedings{pokharel2025capo,
            title     = {{CAPO: Confidence Aware Preference Optimization Learning for Multilingual Preferences}},
            author    = {Rhitabrat Pokharel and Yufei Tao and Ameeta Agrawal},
            year      = 2025,
            booktitle = {Findings of the Association for Computational Linguistics: IJCNLP-AACL 2025},
            pages     = {1144--1156},
            url       = {https://arxiv.org/abs/2511.07691},
        }"""),
}

"""How a prompt is cleaned before it is tokenised, exactly as Wan 2.1 does it (`wan/modules/tokenizers.py`)."""

import html
import re


def clean_prompt(text: str) -> str:
    """Mend broken encodings (ftfy), resolve HTML entities twice, and make every run of white space one space.

    ``clean_prompt("cafÃ©  &amp;amp; \\n bar")`` is ``"café & bar"``.
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()

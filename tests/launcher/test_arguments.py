"""The arguments of evaluation and generation."""

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.launcher.arguments import script_parser

MISTAKES = {
    "--promt x": "gptx generate does not know --promt; did you mean --prompt?",
    "--promt=x --prompt y": "gptx generate does not know --promt; did you mean --prompt?",
    "--dryrun": "gptx generate does not know --dryrun; did you mean --dry-run?",
    "--generation.seed=3": "does not know --generation.seed; did you mean --set generation.seed=3?",
    "--prompt x --json": "gptx generate does not know --json; see gptx generate --help",
    "--checkpoint 3": "the following arguments are required: --prompt; see gptx generate --help",
    "--prompt x y": "unrecognized arguments: y; see gptx generate --help",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistyped_option_is_named_before_one_that_is_missing(words):
    parser = script_parser("generate.py", "gptx generate")
    with pytest.raises(UserError) as caught:
        parser.parse(["--config", "", *words.split()])
    assert MISTAKES[words] in str(caught.value)

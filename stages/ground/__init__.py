"""Live grounding: a frozen LMM answers about an image, and the words of its answer get masks (docs/ground.md).

from stages.ground import Grounder
"""

from stages.ground.answer import Answer, SeenImage
from stages.ground.grounder import Grounder
from stages.ground.results import Grounding, Phrase, Word

__all__ = ["Answer", "Grounder", "Grounding", "Phrase", "SeenImage", "Word"]

"""The components of an exported model. In an exported folder another text stands here, which names them."""

from omnikit.component import Component

COMPONENTS: tuple[type[Component], ...] = ()

"""What the agent answers where a request can't be carried out."""


class AgentError(Exception):
    """A request can't be carried out: the text goes to the user."""

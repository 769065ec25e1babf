"""Environments: what answers a model between its turns, and the rollouts that meet them."""

from preftune.environments.base import Environment, Reply
from preftune.environments.resolve import ENVIRONMENTS, resolve_environment

__all__ = ["ENVIRONMENTS", "Environment", "Reply", "resolve_environment"]

"""From a fleet to what an engineer applies: launch commands, Kubernetes manifests, router, notes.

Every flag of a command stands in a table of flags that were read in the engine's release
(`profiles/deploy`); what a scenario says and its engine cannot say is noted, never dropped.
"""

from llmsim.deployment.calling import deploy
from llmsim.deployment.made import Deployment, Options, make_deployment

__all__ = ["Deployment", "Options", "deploy", "make_deployment"]

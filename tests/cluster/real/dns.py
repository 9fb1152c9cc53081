"""The names of a cluster: CoreDNS as a process beside the nodes, at the address that kubelets give their pods."""

import http.client

from tests.cluster import kubeconfig
from tests.cluster.processes import Server
from tests.cluster.real.network import GATEWAY, Network
from tests.cluster.real.node import Site
from tests.cluster.waiting import until

READY_PORT = 8181

# Names of the cluster alone: nothing here asks the world.
COREFILE = """
cluster.local:53 in-addr.arpa:53 {{
  bind {gateway}
  errors
  ready 127.0.0.1:{ready}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} tests
    ttl 1
  }}
}}
.:53 {{
  bind {gateway}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""


def server(site: Site) -> Server:
    folder = site.family.folder
    user = site.authority.client("dns", ["system:masters"])
    own = kubeconfig.write(folder / "dns.kubeconfig", site.endpoint, user)
    (folder / "Corefile").write_text(COREFILE.format(gateway=GATEWAY, ready=READY_PORT, kubeconfig=own))
    command = [*site.network.enter, str(site.programs / "coredns"), "-conf", str(folder / "Corefile")]
    return Server(command, site.logs / "coredns.log", site.family, "coredns")


def wait_ready(network: Network) -> None:
    """Until CoreDNS knows the cluster's Services."""
    host, port = network.reach("127.0.0.1", READY_PORT).split(":")

    def ready() -> bool:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    until(ready, "CoreDNS is ready")

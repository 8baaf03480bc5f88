"""Salt's rest_cherrypy with the limit of a request's body that its setting names.

Salt 3008.3 gives `max_request_body_size` to CherryPy under a name that CherryPy does not know, so its 100 MiB are the
limit. salt-api loads this module in place of Salt's own, which it starts.

.. code-block:: yaml

    netapi_dirs: [/etc/saltern/netapi]
    rest_cherrypy:
      max_request_body_size: 1048576
"""

import cherrypy
import salt.netapi.rest_cherrypy as original

__virtualname__ = "rest_cherrypy"
_DEFAULT = 1 << 20  # Salt's own


def __virtual__():
    original.__opts__ = __opts__
    return original.__virtual__()


def start():
    """Start the server loop."""
    original.__opts__ = __opts__
    limit = __opts__[__virtualname__].get("max_request_body_size", _DEFAULT)
    cherrypy.config.update({"server.max_request_body_size": limit})
    original.start()

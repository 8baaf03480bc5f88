# An example for a site's use of Saltern's events: send an alert when a disk could not be saved.
#
# In a file of /etc/salt/master.d/:
#   reactor:
#     - 'vmachines/*/*/failed_to_save': [/srv/reactor/failed_to_save.sls]
#
# The tag is vmachines/<minion>/<uuid>/<status>, with `_` for blanks; the data is the status that `vmachines.status`
# returns. The data comes from a worker, and the VM's name from a user. It is passed on as data and never becomes a
# function, a target or a command. A reactor runs as root on the master, and in the profile `dedicated` the blacklist also
# binds `local` reactions (master.d/saltern_dedicated.conf).
{% set vm = data.get('data', {}) %}
alert_the_operators:
  runner.http.query:
    - args:
      - url: https://alerts.example.com/hook
      - method: POST
      - header_dict: {Content-Type: application/json}
      - data: {{ {'worker': data.get('id'), 'name': vm.get('name'), 'message': vm.get('message')} | tojson | tojson }}

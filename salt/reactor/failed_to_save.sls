# A disk could not be saved: tell somebody at once. An example of what a site can do with Saltern's events.
#
# In a file of /etc/salt/master.d/:
#   reactor:
#     - 'vmachines/*/*/failed_to_save': [/srv/reactor/failed_to_save.sls]
#
# The tag is vmachines/<minion>/<uuid>/<status>, with `_` for blanks; the data is the status that `vmachines.status`
# returns. Everything in it was said by a worker, and the VM's name by a user: it is sent on as data and never becomes
# a function, a target or a command. A reactor runs as root on the master, and `local` reactions are bound by
# publisher_acl_blacklist like everybody (master.d/saltern.conf).
{% set vm = data.get('data', {}) %}
tell_the_operators:
  runner.http.query:
    - args:
      - url: https://alerts.example.com/hook
      - method: POST
      - header_dict: {Content-Type: application/json}
      - data: {{ {'worker': data.get('id'), 'name': vm.get('name'), 'message': vm.get('message')} | tojson | tojson }}

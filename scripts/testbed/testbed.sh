# shellcheck shell=bash
# The two-host test-bed: source this file, call testbed_init, then the functions of the
# files below. README.md lists them.
testbed_lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$testbed_lib/common.sh"
. "$testbed_lib/mgmt.sh"
. "$testbed_lib/hosts.sh"
. "$testbed_lib/pki.sh"
. "$testbed_lib/central.sh"
. "$testbed_lib/qmp.sh"
. "$testbed_lib/guests.sh"
. "$testbed_lib/migrate.sh"

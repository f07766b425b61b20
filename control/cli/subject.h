/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_SUBJECT_H
#define MOAT_CLI_SUBJECT_H 1

/* Whose packets a replay judges, and what else the policy may speak of: from --mac, --address,
 * --name and --label, or from a file (--inventory):
 *
 *   {"networks": [{"name": "blue", "subnets": ["10.0.0.0/24"], "gateways": ["10.0.0.1"],
 *                  "dhcp_servers": [], "metadata_servers": [], "routers": []}],
 *    "vms": [{"name": "web", "uuid": "...", "labels": {"role": "web"},
 *             "vnics": [{"vnic": "web-0", "network": "blue", "mac": "52:54:00:00:00:01",
 *                        "addresses": ["10.0.0.5"], "allowed_addresses": []}]}]}
 *
 * Networks are as `network list` prints them as JSON, VMs as `vm show` does.  Lists, labels and
 * uuid may be missing, other members are not looked at. */

#include "cli.h"
#include "policy/policy.h"
#include "replay.h"

struct subject {
    struct moat_inventory *inventory;
    struct moat_replay_vnic vnics[MOAT_REPLAY_VNICS_MAX];
    size_t n_vnics;
    struct subject_strings *strings; /* what vnics[] points to */
};

/* CLI_OK, or the exit code and said why. */
int subject_open(struct subject *, const struct cli *);
void subject_close(struct subject *);

#endif /* control/cli/subject.h */

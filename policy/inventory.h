/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_INVENTORY_H
#define MOAT_POLICY_INVENTORY_H 1

/* Inside of the inventory: read by everyone in this folder, written by
 * inventory.c.  Prefixes have no bits set beyond their length. */

#include "policy/policy.h"

struct inv_addrs {
    struct moat_addr *v;
    uint32_t n;
};

struct inv_network {
    char *name;
    struct inv_addrs subnets, gateways, dhcp_servers, metadata_servers, routers;
};

struct inv_label {
    char *key, *value;
};

struct inv_vm {
    char uuid[37]; /* lower case */
    char *name;
    struct inv_label *labels;
    uint32_t n_labels;
    bool quarantine;
};

struct inv_vnic {
    char *id;
    uint32_t vm, network;
    uint8_t mac[6];
    struct inv_addrs addrs;
};

/* From a string to the index of its row. */
struct inv_index {
    uint32_t *slot; /* row + 1; 0: free */
    uint32_t n, size;
};

struct moat_inventory {
    struct inv_network *networks;
    struct inv_vm *vms;
    struct inv_vnic *vnics;
    uint32_t n_networks, cap_networks, n_vms, cap_vms, n_vnics, cap_vnics;
    struct inv_index by_network, by_uuid, by_vnic;
};

#endif /* policy/inventory.h */

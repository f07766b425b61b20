/* SPDX-License-Identifier: Apache-2.0 */

/* Rows become specs, specs go into the library, which copies.  Strings of rows
 * live as long as the IDL's replica does: longer than any call here. */

#include <config.h>

#include "inventory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moat-idl.h"
#include "openvswitch/dynamic-string.h"
#include "util.h"

#include "policy/policy.h"

bool moat_mac_parse(const char *text, uint8_t mac[6])
{
    for (int i = 0; i < 6; i++) {
        unsigned v = 0;
        for (int k = 0; k < 2; k++, text++) {
            int digit = *text ? hexit_value(*text) : -1;
            if (digit < 0)
                return false;
            v = v << 4 | (unsigned)digit;
        }
        mac[i] = (uint8_t)v;
        if (*text++ != (i < 5 ? ':' : '\0'))
            return false;
    }
    return true;
}

int moat_vnic_addrs(const struct moatrec_vnic *row, struct moat_addr *out, size_t max,
                    const char **bad)
{
    size_t n = row->n_addresses + row->n_allowed_addresses;

    if (n > max)
        return -E2BIG;
    for (size_t i = 0; i < n; i++) {
        const char *text = i < row->n_addresses ? row->addresses[i]
                                                : row->allowed_addresses[i - row->n_addresses];
        if (moat_addr_parse(text, &out[i])) {
            *bad = text;
            return -EINVAL;
        }
    }
    return (int)n;
}

static bool put_name(char field[MOAT_ID_MAX], const char *name)
{
    if (!*name || strlen(name) >= MOAT_ID_MAX)
        return false;
    memset(field, 0, MOAT_ID_MAX);
    strcpy(field, name);
    return true;
}

bool moat_vnic_conf(const struct moatrec_vm *vm, const struct moatrec_vnic *row,
                    struct moat_slot_conf *conf, char *why, size_t why_size)
{
    const char *bad = "";

    memset(conf, 0, sizeof *conf);
    if (!put_name(conf->vnic, row->vnic_id) || !put_name(conf->vm, vm->name) ||
        !row->network || !put_name(conf->network, row->network->name)) {
        snprintf(why, why_size, "vNIC \"%.40s\": a name is empty or too long", row->vnic_id);
        return false;
    }
    if (!moat_mac_parse(row->mac, conf->mac)) {
        snprintf(why, why_size, "vNIC %s: \"%.40s\" is not a MAC address", row->vnic_id, row->mac);
        return false;
    }
    int n = moat_vnic_addrs(row, conf->addrs, MOAT_ADDRS_MAX, &bad);
    if (n < 0) {
        if (n == -E2BIG)
            snprintf(why, why_size, "vNIC %s has more than %d addresses", row->vnic_id,
                     MOAT_ADDRS_MAX);
        else
            snprintf(why, why_size, "vNIC %s: \"%.60s\" is not an address", row->vnic_id, bad);
        return false;
    }
    conf->n_addrs = (uint8_t)n;
    conf->epoch = (uint64_t)row->epoch;
    return true;
}

/* --- networks ----------------------------------------------------------------- */

static const struct moat_addr *addr_list(char *const *texts, size_t n, const char *network,
                                         const char *what, struct ds *problems)
{
    struct moat_addr *a = xcalloc(n + 1, sizeof *a);

    for (size_t i = 0; i < n; i++)
        if (moat_addr_parse(texts[i], &a[i]))
            ds_put_format(problems, "network %s: %s: \"%s\" is not an address\n", network, what,
                          texts[i]);
    return a;
}

static void add_network(struct moat_inventory *inv, const struct moatrec_network *row,
                        struct ds *problems)
{
    size_t had = problems->length;
#define LIST(FIELD) addr_list(row->FIELD, row->n_##FIELD, row->name, #FIELD, problems)
    struct moat_network_spec spec = {
        .name = row->name,
        .subnets = LIST(subnets),
        .n_subnets = row->n_subnets,
        .gateways = LIST(gateways),
        .n_gateways = row->n_gateways,
        .dhcp_servers = LIST(dhcp_servers),
        .n_dhcp_servers = row->n_dhcp_servers,
        .metadata_servers = LIST(metadata_servers),
        .n_metadata_servers = row->n_metadata_servers,
        .routers = LIST(routers),
        .n_routers = row->n_routers,
    };
#undef LIST
    if (problems->length == had) {
        int rc = moat_inventory_add_network(inv, &spec);
        if (rc < 0)
            ds_put_format(problems, "network %s: %s\n", row->name, ovs_strerror(-rc));
    }
    free((void *)(uintptr_t)spec.subnets);
    free((void *)(uintptr_t)spec.gateways);
    free((void *)(uintptr_t)spec.dhcp_servers);
    free((void *)(uintptr_t)spec.metadata_servers);
    free((void *)(uintptr_t)spec.routers);
}

/* --- VMs ------------------------------------------------------------------------ */

static void add_vm(struct moat_inventory *inv, const struct moatrec_vm *row, struct ds *problems)
{
    const struct smap_node *node;
    struct moat_label *labels = xcalloc(smap_count(&row->labels) + 1, sizeof *labels);
    struct moat_vm_spec spec = {.uuid = row->vm_uuid, .name = row->name, .labels = labels,
                                .quarantine = row->quarantine};

    SMAP_FOR_EACH (node, &row->labels) {
        labels[spec.n_labels++] = (struct moat_label){node->key, node->value};
    }
    int vm = moat_inventory_add_vm(inv, &spec);
    free(labels);
    if (vm < 0) {
        ds_put_format(problems, "VM %s: %s\n", row->name, ovs_strerror(-vm));
        return;
    }
    for (size_t i = 0; i < row->n_vnics; i++) {
        struct moat_slot_conf conf;
        char why[160];

        if (!moat_vnic_conf(row, row->vnics[i], &conf, why, sizeof why)) {
            ds_put_format(problems, "VM %s: %s\n", row->name, why);
            continue;
        }
        int network = moat_inventory_find_network(inv, conf.network);
        struct moat_vnic_spec vnic = {.id = conf.vnic,
                                      .vm = (unsigned)vm,
                                      .network = (unsigned)network,
                                      .addrs = conf.addrs,
                                      .n_addrs = conf.n_addrs};
        memcpy(vnic.mac, conf.mac, sizeof vnic.mac);
        int rc = network < 0 ? network : moat_inventory_add_vnic(inv, &vnic);
        if (rc < 0)
            ds_put_format(problems, "VM %s: vNIC %s: %s\n", row->name, conf.vnic,
                          ovs_strerror(-rc));
    }
}

struct moat_inventory *moat_inventory_from_db(const struct ovsdb_idl *idl, char **problemsp)
{
    struct moat_inventory *inv = moat_inventory_create();
    struct ds problems = DS_EMPTY_INITIALIZER;
    const struct moatrec_network *network;
    const struct moatrec_vm *vm;

    *problemsp = NULL;
    if (!inv)
        out_of_memory();
    MOATREC_NETWORK_FOR_EACH (network, idl)
        add_network(inv, network, &problems);
    MOATREC_VM_FOR_EACH (vm, idl)
        add_vm(inv, vm, &problems);
    if (problems.length) {
        *problemsp = ds_steal_cstr(&problems);
        moat_inventory_destroy(inv);
        inv = NULL;
    }
    ds_destroy(&problems);
    return inv;
}

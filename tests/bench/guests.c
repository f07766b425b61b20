/* SPDX-License-Identifier: Apache-2.0 */

#include "guests.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"

static int parse_mac(const char *text, uint8_t mac[6])
{
    char end;

    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", &mac[0], &mac[1], &mac[2],
                  &mac[3], &mac[4], &mac[5], &end) == 6
               ? 0
               : -EINVAL;
}

static int fill(struct moat_slot_conf *c, char *text)
{
    char *rest = text, *name = strsep(&rest, ","), *path = strsep(&rest, ","),
         *mac = strsep(&rest, ",");

    if (!mac || !*name || strlen(name) > 32 || strlen(path) >= sizeof c->path ||
        parse_mac(mac, c->mac))
        return -EINVAL;
    snprintf(c->vnic, sizeof c->vnic, "%s-nic", name);
    snprintf(c->vm, sizeof c->vm, "%s", name);
    snprintf(c->network, sizeof c->network, "net");
    snprintf(c->path, sizeof c->path, "%s", path);
    while (rest) {
        char *addr = strsep(&rest, ",");

        if (c->n_addrs == MOAT_ADDRS_MAX || moat_addr_parse(addr, &c->addrs[c->n_addrs]))
            return -EINVAL;
        c->n_addrs++;
    }
    c->state = MOAT_SLOT_ACTIVE;
    c->epoch = 1;
    moat_settings_init(&c->settings);
    return 0;
}

int guests_add(struct guests *g, const char *text)
{
    char *copy;
    int rc;

    if (g->n == GUESTS_MAX)
        return -EINVAL;
    copy = strdup(text);
    memset(&g->conf[g->n], 0, sizeof g->conf[g->n]);
    rc = copy ? fill(&g->conf[g->n], copy) : -ENOMEM;
    free(copy);
    if (!rc)
        g->n++;
    return rc;
}

static struct moat_inventory *inventory(const struct guests *g)
{
    struct moat_inventory *inv = moat_inventory_create();
    struct moat_network_spec net = {.name = "net"};
    int ok = inv && moat_inventory_add_network(inv, &net) == 0;

    for (unsigned i = 0; ok && i < g->n; i++) {
        const struct moat_slot_conf *c = &g->conf[i];
        char uuid[40];
        struct moat_vm_spec vm = {.uuid = uuid, .name = c->vm};
        struct moat_vnic_spec vnic = {
            .id = c->vnic, .vm = i, .addrs = c->addrs, .n_addrs = c->n_addrs};

        snprintf(uuid, sizeof uuid, "00000000-0000-0000-0000-%012u", i + 1);
        memcpy(vnic.mac, c->mac, 6);
        ok = moat_inventory_add_vm(inv, &vm) == (int)i &&
             moat_inventory_add_vnic(inv, &vnic) == (int)i;
    }
    if (!ok) {
        fprintf(stderr, "guests of the benchmark are refused by the inventory\n");
        moat_inventory_destroy(inv);
        return NULL;
    }
    return inv;
}

static void complain(const struct moat_diags *diags)
{
    char *text = moat_diags_text(diags);

    fprintf(stderr, "%s", text ? text : "no memory\n");
    free(text);
}

uint8_t *guests_ruleset(const struct guests *g, unsigned i, const char *text, size_t *len)
{
    struct moat_diags *diags = moat_diags_create();
    struct moat_inventory *inv = inventory(g);
    struct moat_policy *policy = moat_policy_parse(text, strlen(text), "policy", diags);
    uint8_t *blob = NULL;

    if (inv && policy && moat_policy_compile(policy, inv, i, 1, &blob, len, diags))
        blob = NULL;
    if (!blob)
        complain(diags);
    moat_policy_destroy(policy);
    moat_inventory_destroy(inv);
    moat_diags_destroy(diags);
    return blob;
}

/* SPDX-License-Identifier: Apache-2.0 */

/* A tap counts if three say so: the kernel (kind tun), OVSDB (it is an Interface,
 * so it is attached to a bridge), and its owner (external_ids:iface-id, which only
 * a VM's port has).  br0, ovs-netdev and other people's taps have no iface-id. */

#include <config.h>

#include "taps.h"

#include <stdlib.h>
#include <string.h>

#include "alert.h"
#include "arrive.h"
#include "cluster.h"
#include "engine.h"
#include "host_config.h"
#include "link.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "ovsdb.h"
#include "sset.h"
#include "timeval.h"
#include "util.h"

#define UNCLAIMED_MS 3000 /* a port comes before its slot and goes after it */

struct seen {
    long long since;
    bool down_by_us, mark, listed_again;
};

static struct shash taps = SHASH_INITIALIZER(&taps);
static struct shash ports = SHASH_INITIALIZER(&ports);

static struct seen *see(struct shash *table, const char *name)
{
    struct seen *s = shash_find_data(table, name);

    if (!s) {
        s = xzalloc(sizeof *s);
        s->since = time_msec();
        shash_add(table, name, s);
    }
    s->mark = true;
    return s;
}

/* Forgets what was not seen in this turn, with its problem. */
static void sweep(struct shash *table, const char *prefix)
{
    struct shash_node *node;

    SHASH_FOR_EACH_SAFE (node, table) {
        struct seen *s = node->data;
        if (s->mark) {
            s->mark = false;
            continue;
        }
        char *key = xasprintf("%s:%s", prefix, node->name);
        cluster_problem(key, NULL);
        free(key);
        free(s);
        shash_delete(table, node);
    }
}

static void one_tap(const char *name, const char *iface_id, const struct link_tap *tap, bool down)
{
    struct seen *s = see(&taps, name);
    struct cluster_vnic row;

    cluster_vnic(iface_id, &row);
    const char *vm = row.known ? row.conf.vm : "";
    if (tap->up && s->down_by_us)
        alert(SEV_ALARM, "tap-raised", iface_id, vm,
              "somebody raised tap %s again, which is past the firewall", name);
    else if (!s->down_by_us)
        alert(SEV_ALARM, "unprotected-tap", iface_id, vm,
              "tap %s is a VM's port in the kernel: its traffic does not pass the firewall", name);
    if (tap->up && down && !link_set_down(name)) {
        s->down_by_us = true;
        alert(SEV_WARNING, "tap-down", iface_id, vm, "tap %s was set down (unprotected-taps=block)",
              name);
    }
    char *key = xasprintf("tap:%s", name);
    char *text = xasprintf("vNIC %s%s%s: unprotected, link %s", iface_id, *vm ? " of VM " : "", vm,
                           tap->up && !s->down_by_us ? "up" : "down");
    cluster_problem(key, text);
    free(key);
    free(text);
}

static void run_taps(void)
{
    bool down = arrive_tap_down(cluster_known() ? cluster_host_setting("unprotected-taps") : NULL,
                                host_config_get("unprotected-taps"));
    struct shash_node *node;

    SHASH_FOR_EACH (node, ovsdb_taps()) {
        const struct link_tap *tap = shash_find_data(link_taps(), node->name);
        if (tap)
            one_tap(node->name, node->data, tap, down);
    }
    sweep(&taps, "tap");
}

static void run_ports(void)
{
    const struct moat_port_info *list;
    size_t n = engine_ports(&list);
    struct shash_node *node;

    for (size_t i = 0; i < n; i++) {
        /* A port that was deleted in the switch stays in the list, and may seem connected. */
        if (list[i].claimed || !list[i].connected || !list[i].running)
            continue;
        struct seen *s = see(&ports, list[i].path);
        if (time_msec() - s->since < UNCLAIMED_MS)
            continue;
        if (!s->listed_again) { /* the list may be older than a change that sent no event */
            s->listed_again = true;
            engine_touch();
            poll_immediate_wake();
            continue;
        }
        char *key = xasprintf("port:%s", list[i].path);
        if (!smap_get(cluster_problems(), key))
            alert(SEV_WARNING, "unclaimed-port", "", "",
                  "vhost-user port %s has a VM but belongs to no vNIC", list[i].path);
        cluster_problem(key, "belongs to no vNIC: the host's default for unclaimed ports applies");
        free(key);
    }
    sweep(&ports, "port");
    SHASH_FOR_EACH (node, ovsdb_problems()) {
        char *key = xasprintf("interface:%s", node->name);
        cluster_problem(key, node->data);
        free(key);
    }
    /* Interfaces that are no longer a problem. */
    struct sset old = SSET_INITIALIZER(&old);
    const struct smap_node *pn;
    SMAP_FOR_EACH (pn, cluster_problems()) {
        if (!strncmp(pn->key, "interface:", 10) && !shash_find(ovsdb_problems(), pn->key + 10))
            sset_add(&old, pn->key);
    }
    const char *key;
    SSET_FOR_EACH (key, &old)
        cluster_problem(key, NULL);
    sset_destroy(&old);
}

void taps_run(void)
{
    run_taps();
    if (engine_up())
        run_ports();
}

void taps_wait(void)
{
    struct shash_node *node;

    SHASH_FOR_EACH (node, &ports) {
        const struct seen *s = node->data;
        if (time_msec() - s->since < UNCLAIMED_MS)
            poll_timer_wait_until(s->since + UNCLAIMED_MS);
    }
}

void taps_exit(void)
{
    shash_destroy_free_data(&taps);
    shash_destroy_free_data(&ports);
}

/* SPDX-License-Identifier: Apache-2.0 */

/* Stands for librte_vhost and EAL. */

#include "fake_vhost.h"

#include <stdio.h>
#include <stdlib.h>

#include <rte_version.h>
#include <rte_vhost.h>

static const struct rte_vhost_device_ops *ops;

const char *rte_version(void)
{
    const char *v = getenv("FAKE_VERSION");

    return v ? v : "DPDK 22.11.11";
}

int rte_vhost_driver_callback_register(const char *path,
                                       struct rte_vhost_device_ops const *const given)
{
    printf("vhost register %s\n", path);
    ops = given;
    return 0;
}

uint16_t rte_vhost_dequeue_burst(int vid, uint16_t queue, struct rte_mempool *pool,
                                 struct rte_mbuf **pkts, uint16_t n)
{
    (void)pool;
    (void)pkts;
    printf("vhost dequeue %d %u %u\n", vid, queue, n);
    return (uint16_t)(n - 1);
}

uint16_t rte_vhost_enqueue_burst(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    (void)pkts;
    printf("vhost enqueue %d %u %u\n", vid, queue, n);
    return (uint16_t)(n - 2);
}

void fake_vhost_play(void)
{
    if (ops->new_connection)
        printf("= %d\n", ops->new_connection(5));
    printf("= %d\n", ops->new_device(5));
    if (ops->vring_state_changed)
        printf("= %d\n", ops->vring_state_changed(5, 1, 1));
    if (ops->features_changed) {
        printf("= %d\n", ops->features_changed(5, 1ull << 26 | 1));
        printf("= %d\n", ops->features_changed(5, 1));
    }
    if (ops->guest_notified)
        ops->guest_notified(5);
    ops->destroy_device(5);
    if (ops->destroy_connection)
        ops->destroy_connection(5);
}

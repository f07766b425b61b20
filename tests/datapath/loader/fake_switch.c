/* SPDX-License-Identifier: Apache-2.0 */

/* Stands for ovs-vswitchd: registers its callbacks for two ports, another driver's for a
 * third, goes through a device's life, and moves one burst each way.
 *
 *   ovs-vswitchd-fake full|some|stubborn    callbacks: all, those of OVS, refuses devices
 *   ovs-vswitchd-fake exchange N            waits until its engine has said N times (fake_engine.c)
 *                                           that it was exchanged, or not, and moves a burst again
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_vhost.h>

#include "fake_vhost.h"

static int refuse_device;

static int new_device(int vid)
{
    printf("switch new_device %d\n", vid);
    return refuse_device;
}
static void destroy_device(int vid)
{
    printf("switch destroy_device %d\n", vid);
}
static int vring_state_changed(int vid, uint16_t queue, int on)
{
    printf("switch vring_state_changed %d %u %d\n", vid, queue, on);
    return 0;
}
static int features_changed(int vid, uint64_t features)
{
    printf("switch features_changed %d %llx\n", vid, (unsigned long long)features);
    return 0;
}
static int new_connection(int vid)
{
    printf("switch new_connection %d\n", vid);
    return 0;
}
static void destroy_connection(int vid)
{
    printf("switch destroy_connection %d\n", vid);
}
static void guest_notified(int vid)
{
    printf("switch guest_notified %d\n", vid);
}

static int exchange(const struct rte_vhost_device_ops *ops, int n)
{
    char number[16], c;
    int fds[2];

    if (pipe(fds))
        return 1;
    snprintf(number, sizeof number, "%d", fds[1]);
    setenv("FAKE_DONE_FD", number, 1);
    printf("= %d\n", rte_vhost_driver_callback_register("/a", ops));
    for (; n > 0; n--)
        if (read(fds[0], &c, 1) != 1)
            return 1;
    printf("= %u\n", rte_vhost_dequeue_burst(5, 1, NULL, NULL, 32));
    printf("= %u\n", rte_vhost_enqueue_burst(5, 0, NULL, 32));
    printf("= %d\n", rte_vhost_driver_callback_register("/b", ops));
    return 0;
}

int main(int argc, char **argv)
{
    struct rte_vhost_device_ops ops = {.new_device = new_device, .destroy_device = destroy_device};
    struct rte_vhost_device_ops others = ops;
    const char *mode = argc > 1 ? argv[1] : "full";

    if (!strcmp(mode, "full")) {
        ops.vring_state_changed = vring_state_changed;
        ops.features_changed = features_changed;
        ops.new_connection = new_connection;
        ops.destroy_connection = destroy_connection;
        ops.guest_notified = guest_notified;
    }
    if (!strcmp(mode, "exchange"))
        return exchange(&ops, argc > 2 ? atoi(argv[2]) : 1);
    refuse_device = !strcmp(mode, "stubborn") ? -1 : 0;
    printf("= %d\n", rte_vhost_driver_callback_register("/a", &ops));
    printf("= %d\n", rte_vhost_driver_callback_register("/refused", &ops));
    fake_vhost_play();
    printf("= %u\n", rte_vhost_dequeue_burst(5, 1, NULL, NULL, 32));
    printf("= %u\n", rte_vhost_enqueue_burst(5, 0, NULL, 32));
    printf("= %d\n", rte_vhost_driver_callback_register("/b", &others));
    return 0;
}

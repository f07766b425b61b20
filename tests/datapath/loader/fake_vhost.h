/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_FAKE_VHOST_H
#define TESTS_FAKE_VHOST_H 1

/* Goes through the life of device 5: calls the callbacks that were registered last. */
void fake_vhost_play(void);

#endif /* tests/datapath/loader/fake_vhost.h */

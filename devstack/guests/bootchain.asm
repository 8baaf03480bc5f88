; BootChain: a whole guest in one boot sector. It adds one to a counter on its disk and powers off.
;
; One life takes a tenth of a second under emulation, so thousands of real lifecycles fit into an hour, and the saved
; counter is an oracle: it equals the number of boots, or a save was lost (less), or the VM ran twice (a fork).
;
; LBA 1 of the disk, little-endian; devstack/guests/bootchain.py writes it first and reads it later:
;
;   offset  size
;        0     8  magic, "BOOTCHN1"; without it the guest touches nothing and halts with a message
;        8     4  counter: the boots so far
;       12     4  seconds to live after counting; 0: end at once
;       16     4  what the processor offers, by CPUID: 1 no long mode, 2 long mode; 0 before the first boot
;       20    12  how its life ends: the name of the variant, for readers of the disk
;
; It runs on QEMU's machine "pc", as an HVM guest of Xen, and in VirtualBox. Its messages go to the screen and to the
; first serial port: "BootChain", "boot N" (the last digit of the counter) once the count is on the disk, and "off" as
; its last word.
;
; How a life ends, chosen when assembling (nasm -f bin [-D KEY | -D BUTTON | -D SPIN | -D CRASH | -D SLEEP]):
;
;   default  power off through ACPI, by the register of each machine in turn, then through the BIOS (APM)
;   KEY      the same once a key is pressed
;   BUTTON   the same once the power button is pressed
;   SPIN     never; it ignores the power button too
;   SLEEP    as SPIN, but asleep: suspended to memory through the ACPI register of QEMU's machine "pc"
;   CRASH    report a panic to the pvpanic device, if the machine has one, then cause a triple fault, which resets
;            the machine: qemu with -no-reboot ends, libvirt follows on_reboot, else the next life begins

LOAD            equ 0x7C00
BUFFER          equ 0x7E00              ; LBA 1 in memory
BUFFER_SEGMENT  equ BUFFER >> 4
MAGIC           equ BUFFER
COUNTER         equ BUFFER + 8
SECONDS         equ BUFFER + 12
LONG_MODE       equ BUFFER + 16
BIOS_TICKS      equ 0x046C              ; counts 18.2 times a second
PVPANIC         equ 0x505
IDE_COMMAND     equ 0x1F7               ; and status
FLUSH_CACHE     equ 0xE7
SERIAL          equ 0x3F8
; Registers of ACPI, after the base that the firmware gives them: status, enable and control of the block PM1a.
ENABLE          equ 2
CONTROL         equ 4
POWER_BUTTON    equ 0x100
QEMU            equ 0x600
XEN             equ 0xB000
VIRTUALBOX      equ 0x4000
SLEEP_S3        equ 0x2400              ; the bit that begins the sleep, and the type 1 of piix4: to memory

        org     LOAD
        bits    16

start:  cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, LOAD
        sti
        jmp     0:count                 ; some firmware starts at 07C0:0000

count:  mov     [drive], dl
        mov     si, greeting
        call    print
        mov     ah, 0x42                ; extended read
        call    transfer
        mov     si, magic
        mov     di, MAGIC
        mov     cx, 8
        repe    cmpsb
        mov     si, no_magic
        jne     fail
        inc     dword [COUNTER]
        call    look_for_long_mode
        mov     ax, 0x4300              ; extended write, without verify
        call    transfer
        mov     dx, IDE_COMMAND         ; the BIOS leaves it in the cache of an IDE disk
        mov     al, FLUSH_CACHE
        out     dx, al
.flush: in      al, dx
        cmp     al, 0xFF                ; there is no such port
        je      .flushed
        test    al, al
        js      .flush                  ; busy
.flushed:
        mov     al, [COUNTER]
        add     [digit], al
        mov     si, counted
        call    print

        mov     eax, [SECONDS]          ; ticks to live = seconds * 18.2
        mov     edx, 91
        mul     edx
        mov     ecx, 5
        div     ecx
        mov     ecx, eax
live:   jecxz   end_of_life             ; changes are counted, not a difference: at midnight the BIOS starts from zero
        mov     ebx, [BIOS_TICKS]
.same:  hlt
        cmp     ebx, [BIOS_TICKS]
        je      .same
        dec     ecx
        jmp     live

end_of_life:
%ifdef SLEEP
        mov     dx, QEMU + CONTROL
        mov     ax, SLEEP_S3
        out     dx, ax
%define SPIN
%endif
%ifdef SPIN
.spin:  hlt
        jmp     .spin
%elifdef CRASH
        mov     dx, PVPANIC
        mov     al, 1                   ; the guest panicked
        out     dx, al
        hlt                             ; qemu stops the machine meanwhile, if it has the device
        hlt
        lidt    [no_idt]
        int3                            ; no handler, nor one for the fault that follows, nor one for that: a triple fault
%else
%ifdef KEY
        xor     ah, ah                  ; wait for a key
        int     0x16
%elifdef BUTTON
        mov     bp, arm
        call    each_machine
.poll:  hlt                             ; until the next tick
        mov     bp, is_pressed
        call    each_machine
        jnc     .poll
%endif
        mov     si, last_word
        call    print
        mov     bp, power_off
        call    each_machine
        mov     ax, 0x5301              ; APM: connect the real mode interface
        xor     bx, bx
        int     0x15
        mov     ax, 0x530E              ; speak version 1.2
        xor     bx, bx
        mov     cx, 0x0102
        int     0x15
        mov     ax, 0x5307              ; all devices: off
        mov     bx, 1
        mov     cx, 3
        int     0x15
        mov     si, no_apm
        jmp     fail
%endif

each_machine:                           ; call BP with DX: base of PM1a, AX: what powers off there; until it sets carry
        mov     si, machines
.next:  lodsw
        xchg    dx, ax
        test    dx, dx                  ; clears carry
        jz      .end
        lodsw
        call    bp
        jnc     .next
.end:   ret

power_off:
        add     dx, CONTROL
        out     dx, ax
        clc
        ret

%ifdef BUTTON
arm:    in      ax, dx
        inc     ax                      ; 0xFFFF: there is nothing
        jz      .end
        mov     ax, POWER_BUTTON
        out     dx, ax                  ; forget that it was pressed
        add     dx, ENABLE
        out     dx, ax
.end:   clc
        ret

is_pressed:
        in      ax, dx
        cmp     ax, 0xFFFF
        je      .end
        test    ah, POWER_BUTTON >> 8
        jz      .end
        stc
        ret
.end:   clc
        ret
%endif

look_for_long_mode:
        mov     eax, 0x80000000
        cpuid
        mov     ebx, eax                ; the last of the extended leaves
        xor     edx, edx
        mov     eax, 0x80000001
        cmp     ebx, eax
        jb      .known
        cpuid
.known: xor     eax, eax
        bt      edx, 29
        adc     eax, 1
        mov     [LONG_MODE], eax
        ret

transfer:                               ; AH: 0x42 read, 0x43 write (AL 0)
        mov     dl, [drive]
        mov     si, packet
        int     0x13
        mov     si, no_disk
        jc      fail
        ret

fail:   call    print
.stop:  hlt
        jmp     .stop

print:  lodsb                           ; SI: text, ends with 0
        test    al, al
        jz      .done
        mov     ah, 0x0E
        mov     bx, 7
        push    ax
        int     0x10
        xor     cx, cx
.busy:  mov     dx, SERIAL + 5          ; wait until it takes a character, but not for ever
        in      al, dx
        test    al, 0x20
        loopz   .busy
        pop     ax
        mov     dx, SERIAL
        out     dx, al
        jmp     print
.done:  ret

        align   4
packet: db      16, 0
        dw      1                       ; sectors
        dw      0, BUFFER_SEGMENT
        dq      1                       ; LBA
no_idt: dw      0
        dd      0
drive:  db      0
magic:  db      "BOOTCHN1"
machines: dw    QEMU, 0x2000, XEN, 0x2000, VIRTUALBOX, 0x3400, 0
greeting: db    "BootChain", 13, 10, 0
counted:  db    "boot "
digit:    db    "0", 13, 10, 0
last_word: db   "off", 13, 10, 0
no_magic: db    "LBA 1 is not BootChain's", 0
no_disk:  db    "Disk error", 0
no_apm:   db    "No APM", 0

        times   510 - ($ - $$) db 0
        dw      0xAA55

; DMA boot: the boot record of the demo guest, which loads Linux through the IDE controller's bus master.
;
; A BIOS reads IDE disks by programmed I/O: five exits to the hypervisor for each sector. A host that is emulated itself
; takes three minutes for a kernel that way, and two seconds by DMA, where one command moves 64 KiB.
;
; It needs the PIIX3 or PIIX4 controller at 00:01.1, with the disk as its first drive: Xen's HVM guests and VirtualBox
; have both. On any other machine it starts the boot sector of the first partition, as every boot record does.
;
;   LBA 0        boot record: reads the next sectors, and goes on in them
;   LBA 1, 2     stage 2
;   LBA 3        the kernel's arguments
;   LBA 4, ...   the kernel's real-mode part
;
; devstack/guests/dmaboot.py fills in what is loaded from where (`loads`), and the fields of the kernel's header.
; Sources: Linux's Documentation/arch/x86/boot.rst; Intel 82371AB (PIIX4) datasheet, 2.3 and 5.2; ATA/ATAPI-4.

ORIGIN          equ 0x7C00
PRD             equ 0x5000              ; the table of one region for the bus master
TABLE           equ 0x07BE              ; of partitions, for the boot sector of one
COPY            equ 0x6000              ; the boot record once more, as DMA reads it
REAL_MODE       equ 0x9000              ; segment of the kernel's real-mode part
ARGUMENTS       equ 0x9E00              ; segment of its arguments
PCI_IDE         equ 0x80000900          ; 00:01.1
IDE_CLASS       equ 0x0101
TICKS           equ 0x046C              ; of the BIOS: 18.2 a second
PATIENCE        equ 18 * 20

        org     ORIGIN
        bits    16

start:  cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, ORIGIN
        sti
        jmp     0:begin                 ; some firmware starts at 07C0:0000
begin:  mov     si, stage2_packet
        call    read
        jmp     stage2

; Read sectors through the BIOS: si = the packet that says which. dl = the drive.
read:   mov     ah, 0x42
        int     0x13
        jc      broken
        ret
broken: mov     si, message
.next:  lodsb
        test    al, al
        jz      $
        mov     ah, 0x0E
        int     0x10
        jmp     .next

message db      "The boot disk cannot be read", 0

        align   4
stage2_packet:
        dw      16, 2, stage2, 0
        dq      1

        times   440 - ($ - $$) db 0     ; the disk's signature and the table of partitions are written later
        times   512 - ($ - $$) db 0

stage2: mov     [drive], dl
        mov     eax, PCI_IDE + 0x08     ; class and revision
        call    pci
        in      eax, dx
        shr     eax, 16
        cmp     ax, IDE_CLASS
        jne     other
        mov     eax, PCI_IDE + 0x20     ; the bus master's registers
        call    pci
        in      eax, dx
        and     ax, 0xFFFC
        jz      other
        mov     [master], ax
        mov     eax, PCI_IDE + 0x04     ; let it use ports and memory
        call    pci
        in      ax, dx
        or      ax, 5
        out     dx, ax
        mov     ax, 0xE801              ; bx = memory above 16 MiB, in 64 KiB
        int     0x15
        jc      other
        cmp     bx, [memory]
        jb      other
        mov     dx, 0x3F6               ; no interrupts of the drive
        mov     al, 2
        out     dx, al
        mov     edi, COPY               ; is its first drive our disk?
        xor     ebx, ebx
        mov     cx, 1
        call    dma
        jc      quiet
        mov     si, ORIGIN
        mov     di, COPY
        mov     cx, 256
        repe    cmpsw
        jne     quiet

        mov     dl, [drive]
        mov     si, arguments_packet
        call    read
        mov     si, real_mode_packet
        mov     ax, [sectors]
        mov     [si + 2], ax
        call    read
        mov     si, loads
load:   mov     edi, [si]               ; where to
        mov     ebx, [si + 4]           ; from which sector
        mov     ebp, [si + 8]           ; how many sectors, a multiple of 128
        add     si, 12
.part:  test    ebp, ebp
        jz      .done
        mov     cx, 128
        call    dma
        jc      broken
        add     edi, 128 * 512
        add     ebx, 128
        sub     ebp, 128
        jmp     .part
.done:  cmp     si, loads_end
        jb      load
        cli
        mov     ax, REAL_MODE
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     ss, ax
        mov     sp, 0xE000
        jmp     REAL_MODE + 0x20:0

; Not our machine: start the partition.
quiet:  mov     dx, 0x3F6
        xor     al, al
        out     dx, al
other:  mov     si, ORIGIN + 446        ; the table of partitions, where a boot sector expects it
        mov     di, TABLE
        mov     cx, 32
        rep     movsw
        mov     eax, [TABLE + 8]        ; the first sector of the first partition
        mov     [partition_packet + 8], eax
        mov     si, partition_packet    ; not by `read`, which is overwritten
        mov     dl, [drive]
        mov     ah, 0x42
        int     0x13
        jc      $
        mov     si, TABLE
        jmp     0:ORIGIN

; eax = a register of the PCI configuration: dx = the port of its content.
pci:    mov     dx, 0xCF8
        out     dx, eax
        mov     dx, 0xCFC
        ret

; Read cx sectors, at most 128, from ebx to the address edi of memory. Carry: it failed.
dma:    pusha
        mov     [PRD], edi
        mov     ax, cx
        shl     ax, 9                   ; 0 means 64 KiB
        mov     [PRD + 4], ax
        mov     word [PRD + 6], 0x8000  ; the last region
        mov     dx, 0x1F6
        mov     eax, ebx
        shr     eax, 24
        or      al, 0xE0                ; the first drive, by LBA
        out     dx, al
        mov     dx, 0x1F7
        in      al, dx
        and     al, 0xC0
        cmp     al, 0x40                ; ready, as no CD drive and no empty port is
        jne     .no
        mov     dx, [master]
        xor     al, al
        out     dx, al
        add     dx, 2
        mov     al, 6                   ; clear error and interrupt
        out     dx, al
        add     dx, 2
        mov     eax, PRD
        out     dx, eax
        mov     dx, 0x1F2
        mov     al, cl
        out     dx, al
        mov     eax, ebx
        inc     dx
        out     dx, al
        shr     eax, 8
        inc     dx
        out     dx, al
        shr     eax, 8
        inc     dx
        out     dx, al
        mov     dx, 0x1F7
        mov     al, 0xC8                ; READ DMA
        out     dx, al
        mov     dx, [master]
        mov     al, 9                   ; to memory, start
        out     dx, al
        add     dx, 2
        mov     ecx, [TICKS]
        add     ecx, PATIENCE
.wait:  cmp     ecx, [TICKS]
        jb      .no
        in      al, dx
        test    al, 2
        jnz     .no
        test    al, 1                   ; still moving
        jnz     .wait
        mov     dx, [master]
        xor     al, al
        out     dx, al
        mov     dx, 0x1F7
        in      al, dx
        test    al, 0x81                ; busy, error
        jnz     .no
        popa
        clc
        ret
.no:    popa
        stc
        ret

        align   4
partition_packet:
        dw      16, 1, ORIGIN, 0
        dq      0
arguments_packet:
        dw      16, 1, 0, ARGUMENTS
        dq      3
real_mode_packet:
        dw      16, 0, 0, REAL_MODE
        dq      4
drive   db      0
        align   4
master  dw      0

        times   1536 - 32 - ($ - $$) db 0
memory  dd      0                       ; 64 KiB blocks above 16 MiB that are needed
sectors dd      0                       ; of the real-mode part
loads:  dd      0, 0, 0                 ; the kernel: address, first sector, sectors
        dd      0, 0, 0                 ; the initramfs
loads_end:
